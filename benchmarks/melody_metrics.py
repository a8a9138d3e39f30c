"""Scores of melody against mir_eval, and decoding of posteriors to contours against numpy.

    taskset -c 0 python benchmarks/melody_metrics.py

Scores: clips of 8 s (labels every 20 ms) and 5 minutes (every 10 ms), estimates every 16 ms. Decoding: 5 minutes at
16 ms, 256 pitches. Ours and the peer's must agree before either is timed. Times are CPU time of the process, medians of
alternating rounds.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from mmray.features.contour import decode_argmax, decode_threshold, decode_viterbi, fit_threshold, to_grid
from mmray.metrics.melody import clip_scores, mir_eval_scores

NUM_ROUNDS = 9
CENTRES_HZ = 31 * 2 ** (np.arange(256) / 48)
COSTS = (1.0, 4.0, 2.0)


def synthetic_track(seconds, hop_s, rng):
    """A label that wanders and pauses."""
    times = hop_s * np.arange(1, int(seconds / hop_s))
    f0 = 220 * 2 ** (np.cumsum(rng.normal(0, 0.1, len(times))) % 24 / 12)
    return times, f0 * (np.sin(times * 2) > -0.3)


def synthetic_posteriors(num_frames, rng):
    """Bells of 3 bins about a wandering pitch, over noise."""
    peak = 100 + 40 * np.sin(np.arange(num_frames) / 50) + rng.normal(0, 1, num_frames)
    logits = rng.normal(0, 1, (num_frames, 257)).astype(np.float32)
    logits[:, 1:] += 8 * np.exp(-(((np.arange(256) - peak[:, None]) / 3) ** 2))
    logits[:, 0] += 8 * (np.sin(np.arange(num_frames) / 80) > 0.5)
    p = np.exp(logits)
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def numpy_viterbi(p, centres, semitone_cost, leap_cost, switch_cost):
    """Every pair of states, vectorised over pairs."""
    pitches = np.append(1.0, centres)
    costs = np.minimum(np.abs(12 * np.log2(pitches[:, None] / pitches)) * semitone_cost, leap_cost)
    costs[0, 1:] = costs[1:, 0] = switch_cost
    costs[0, 0] = 0
    log_p = np.log(np.maximum(p, np.finfo(np.float32).tiny))
    score, backward = log_p[0].astype(np.float64), np.empty(p.shape, np.int64)
    for t in range(1, len(p)):
        entering = score - costs  # costs are symmetric: row = to, column = from
        backward[t] = entering.argmax(axis=1)
        score = entering[np.arange(len(score)), backward[t]] + log_p[t]
    row = int(score.argmax())
    rows = [row]
    for t in range(len(p) - 1, 0, -1):
        row = int(backward[t, row])
        rows.append(row)
    return np.append(0.0, centres)[rows[::-1]]


def numpy_argmax(p, centres):
    return np.append(0.0, centres)[p.argmax(axis=1)]


def measured(contenders):
    seconds = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(NUM_ROUNDS):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def print_table(title, contenders, peer):
    seconds = measured(contenders)
    print(f"\n{title}, median of {NUM_ROUNDS} alternating rounds")
    for name, times in seconds.items():
        ratio = statistics.median(p / t for p, t in zip(seconds[peer], times, strict=True))
        print(f"{name:42}{statistics.median(times) * 1e3:12.3f} ms{ratio:10.2f} x {peer}")


def require_equal(ours, peers, what):
    if not np.array_equal(ours, peers):
        sys.exit(f"{what}: ours and the peer's differ, so their speeds mean nothing")


def print_scores(rng):
    for title, seconds, hop_s, repeats in (("8 s clip, 20 of them", 8, 0.02, 20), ("5-minute track", 300, 0.01, 1)):
        times, f0 = synthetic_track(seconds, hop_s, rng)
        est_times = 0.016 * np.arange(1, int(seconds / 0.016))
        est_f0 = to_grid(times, f0, est_times) * 2 ** (rng.normal(0, 0.04, len(est_times)) + (rng.random() < 0.1))
        clip = (times, f0, est_times, est_f0)
        require_equal(list(clip_scores(*clip).items()), list(mir_eval_scores(*clip).items()), "scores")

        def repeated(score, clip=clip, repeats=repeats):
            return lambda: [score(*clip) for _ in range(repeats)]

        contenders = {"mir_eval": repeated(mir_eval_scores), "mmray clip_scores": repeated(clip_scores)}
        print_table(f"Five scores of a {title}", contenders, "mir_eval")


def print_decoding(rng):
    p = synthetic_posteriors(18_750, rng)
    part = p[:600]
    require_equal(decode_viterbi(part, CENTRES_HZ, *COSTS).f0_hz, numpy_viterbi(part, CENTRES_HZ, *COSTS), "viterbi")
    require_equal(decode_argmax(p, CENTRES_HZ).f0_hz, numpy_argmax(p, CENTRES_HZ), "argmax")
    label = numpy_argmax(p, CENTRES_HZ)
    contenders = {
        "numpy argmax": lambda: numpy_argmax(p, CENTRES_HZ),
        "mmray decode_argmax": lambda: decode_argmax(p, CENTRES_HZ),
        "mmray decode_threshold": lambda: decode_threshold(p, CENTRES_HZ, 0.4),
        "mmray decode_viterbi": lambda: decode_viterbi(p, CENTRES_HZ, *COSTS),
        "mmray fit_threshold": lambda: fit_threshold([(p, label)], CENTRES_HZ),
        "(limit: read each posterior once)": lambda: p.sum(),
    }
    print_table("Contour of 5 minutes, 18,750 frames x 257", contenders, "numpy argmax")
    contenders = {
        "numpy, all pairs of states": lambda: numpy_viterbi(part, CENTRES_HZ, *COSTS),
        "mmray decode_viterbi": lambda: decode_viterbi(part, CENTRES_HZ, *COSTS),
    }
    print_table("Viterbi of 10 s, 600 frames x 257", contenders, "numpy, all pairs of states")


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    print_scores(generator)
    print_decoding(generator)
