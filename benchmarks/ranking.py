"""GAP at 20 over scores of 4,716 classes, against the starter kit's definition, numpy and torch; mAP over 1 M videos.

    taskset -c 0 python benchmarks/ranking.py

Every contender starts from the same float32 scores in batches of 512 and ends at the GAP, on one core. `starter` is the
challenge's calculator by its definition: per video argpartition and Python triplets, heaps per class and for the pool,
a sort in Python. All must agree before any is timed. Times are CPU time of the process, so that other work on the
machine disturbs them less.
"""

from __future__ import annotations

import gc
import heapq
import resource
import statistics
import sys
import time
import tracemalloc

import numpy as np
import torch

from mmray.metrics.ranking import RankingMetrics, labels_of_multi_hot

NUM_CLASSES = 4716
NUM_VIDEOS = 4096
BATCH_SIZE = 512
K = 20
NUM_ROUNDS = 7
NUM_STORED_VIDEOS = 1_000_000


def synthetic_batches(rng):
    """Batches of (scores, multi-hot labels, labels as lists): 3.4 labels a video, scored above the others as a rule."""
    batches = []
    for _ in range(NUM_VIDEOS // BATCH_SIZE):
        multi_hot = rng.random((BATCH_SIZE, NUM_CLASSES), dtype=np.float32) < 3.4 / NUM_CLASSES
        logits = rng.standard_normal((BATCH_SIZE, NUM_CLASSES), dtype=np.float32) * 2 - 6 + 5 * multi_hot
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        batches.append((scores, multi_hot, labels_of_multi_hot(multi_hot)))
    return batches


def starter_gap(batches):
    class_heaps = [[] for _ in range(NUM_CLASSES)]
    pool, num_positives = [], 0
    for scores, multi_hot, _ in batches:
        triplets = []
        for row, labels in zip(scores, multi_hot, strict=True):
            triplets.extend((c, row[c], labels[c]) for c in np.argpartition(row, -K)[-K:])
        by_class = [[] for _ in range(NUM_CLASSES)]
        for c, score, label in triplets:
            by_class[c].append((score, label))
        for heap, pairs in zip(class_heaps, by_class, strict=True):
            for pair in pairs:
                heapq.heappush(heap, pair)
        for pairs in by_class:
            for pair in pairs:
                heapq.heappush(pool, pair)
        num_positives += sum(int(multi_hot[:, c].sum()) for c in range(NUM_CLASSES))  # the kit counts class by class
    hits, total = 0, 0.0
    for rank, (_, hit) in enumerate(sorted(pool, key=lambda pair: pair[0], reverse=True), start=1):
        if hit:
            hits += 1
            total += hits / rank
    return total / num_positives


def argpartition_gap(batches):
    pool, hits, num_positives = [], [], 0
    for scores, multi_hot, (classes, _) in batches:
        top = np.argpartition(scores, -K, axis=1)[:, -K:]
        pool.append(np.take_along_axis(scores, top, axis=1))
        hits.append(np.take_along_axis(multi_hot, top, axis=1))
        num_positives += len(classes)
    ranked = np.concatenate(hits).ravel()[np.argsort(-np.concatenate(pool).ravel())]
    ranks = np.flatnonzero(ranked) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum()) / num_positives


def torch_gap(batches):
    pool, hits, num_positives = [], [], 0
    for scores, multi_hot, (classes, _) in batches:
        values, top = torch.topk(torch.from_numpy(scores), K, sorted=False)
        pool.append(values)
        hits.append(torch.from_numpy(multi_hot).gather(1, top))
        num_positives += len(classes)
    order = torch.sort(torch.cat(pool).ravel(), descending=True).indices
    ranks = torch.cat(hits).ravel()[order].nonzero().ravel() + 1
    return float((torch.arange(1, len(ranks) + 1) / ranks.double()).sum()) / num_positives


def accumulate(batches):
    metrics = RankingMetrics(NUM_CLASSES, K)
    for scores, _, labels in batches:
        metrics.update(scores, labels)
    return metrics


def our_gap(batches):
    return accumulate(batches).gap()


def our_four_metrics(batches):
    return accumulate(batches).compute()["gap"]


def read_once(batches):
    """The physical limit: each score read once."""
    return sum(float(scores.max()) for scores, _, _ in batches)


def print_speed():
    contenders = {
        "starter kit's definition": starter_gap,
        "numpy argpartition + argsort": argpartition_gap,
        "torch.topk + sort": torch_gap,
        "mmray, GAP": our_gap,
        "mmray, GAP + mAP + Hit@1 + PERR": our_four_metrics,
    }
    batches = synthetic_batches(np.random.default_rng(0))
    gaps = {name: run(batches) for name, run in contenders.items()}
    if max(gaps.values()) - min(gaps.values()) > 1e-6:
        sys.exit(f"the contenders disagree, so their speeds mean nothing: {gaps}")
    contenders["(limit: read each score once)"] = read_once
    seconds = {name: [] for name in contenders}
    for _ in range(NUM_ROUNDS):
        for name, run in contenders.items():
            start = time.process_time()
            run(batches)
            seconds[name].append(time.process_time() - start)

    print(f"GAP at {K} of {NUM_VIDEOS:,} videos x {NUM_CLASSES:,} classes, median of {NUM_ROUNDS} alternating rounds")
    print(f"{'':34}{'videos/s':>12}{'x starter':>12}{'x torch':>12}")
    for name, times in seconds.items():
        x_starter, x_torch = (
            statistics.median(peer / ours for peer, ours in zip(seconds[peer_name], times, strict=True))
            for peer_name in ("starter kit's definition", "torch.topk + sort")
        )
        print(f"{name:34}{NUM_VIDEOS / statistics.median(times):12,.0f}{x_starter:12.2f}{x_torch:12.2f}")


def print_scale():
    """Stored predictions of 1 M videos: 20 different classes each, the low ones more often."""
    rng = np.random.default_rng(1)
    metrics = RankingMetrics(NUM_CLASSES, K)
    accumulate_s = 0.0
    for start in range(0, NUM_STORED_VIDEOS, 16_384):
        num_videos = min(16_384, NUM_STORED_VIDEOS - start)
        first = (NUM_CLASSES * rng.random((num_videos, 1)) ** 3).astype(np.int32)
        classes = (first + 7 * np.arange(K, dtype=np.int32)) % NUM_CLASSES  # 7 and 4,716 have no common factor
        scores = np.sort(rng.random((num_videos, K), dtype=np.float32))[:, ::-1]
        places = np.sort(rng.random((num_videos, K)).argsort(axis=1)[:, :3], axis=1)
        labels = (np.take_along_axis(classes, places, axis=1).ravel(), 3 * np.arange(num_videos + 1))
        begin = time.process_time()
        metrics.update_top_k(classes, scores, labels)
        accumulate_s += time.process_time() - begin
    state_bytes = sum(array.nbytes for array in metrics.state().values())
    gc.collect()

    print(f"\n{NUM_STORED_VIDEOS:,} videos, {NUM_STORED_VIDEOS * K:,} stored predictions; one run")
    print(f"{'accumulate':24}{accumulate_s:8.2f} s   state {state_bytes / NUM_STORED_VIDEOS:.1f} bytes a video")
    for name, run in (("GAP", metrics.gap), ("mAP", metrics.mean_average_precision), ("all four", metrics.compute)):
        begin = time.process_time()
        run()
        elapsed_s = time.process_time() - begin
        tracemalloc.start()
        run()
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"{name:24}{elapsed_s:8.2f} s   {peak_bytes / 2**20:6.0f} MiB at the peak beyond the state")
    print(f"resident at the peak, whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_speed()
    print_scale()
