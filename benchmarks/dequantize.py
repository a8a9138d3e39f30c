"""Dequantising frames, and their mean by video: ours against numpy and torch, one core.

    taskset -c 0 python benchmarks/dequantize.py [--rounds 11]

Videos of 60 to 300 frames of 1,152 levels: 128 for the mean; 16, a micro-batch, for frames as features, whose memory
an allocator then keeps from one round to the next. CPU time of the thread, so that other programs matter less, of the
second of two runs, so that all find the levels in the cache; rounds alternate, medians. GB/s are of levels read. Limit:
reading the levels, by numpy's maximum over 64-bit words.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from mmray.features.quantization import BIAS, SCALE, dequantize, mean_of_frames

SIZE = 1152
SCALE_32, BIAS_32 = np.float32(SCALE), np.float32(BIAS)
Runs = dict[str, Callable[[], object]]


def videos(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels and offsets."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(60, 301, count))])
    return rng.integers(0, 256, (offsets[-1], SIZE), dtype=np.uint8), offsets


def means(levels: np.ndarray, offsets: np.ndarray) -> Runs:
    tensor, bounds, spans = torch.from_numpy(levels), torch.from_numpy(offsets), list(pairwise(offsets))

    def in_torch() -> torch.Tensor:
        total = torch.segment_reduce(tensor.float(), "sum", lengths=bounds.diff(), axis=0)
        return total / bounds.diff().unsqueeze(1) * SCALE + BIAS

    return {
        "ours": lambda: mean_of_frames(tensor, bounds),
        "numpy, dequantise then mean": lambda: np.stack([(levels[a:b] * SCALE_32 + BIAS_32).mean(0) for a, b in spans]),
        "numpy, mean then dequantise": lambda: (
            np.stack([levels[a:b].mean(0, np.float32) for a, b in spans]) * SCALE_32 + BIAS_32
        ),
        "torch, segment_reduce": in_torch,
        "limit": lambda: levels.view(np.uint64).max(),
    }


def frames(levels: np.ndarray) -> Runs:
    tensor = torch.from_numpy(levels)
    return {
        "ours": lambda: dequantize(tensor),
        "numpy": lambda: levels * SCALE_32 + BIAS_32,
        "torch": lambda: tensor.float() * SCALE + BIAS,
        "torch, in place": lambda: tensor.float().mul_(SCALE).add_(BIAS),
    }


def compare(title: str, runs: Runs, num_bytes: int, rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            began = time.thread_time()
            run()
            seconds[name].append(time.thread_time() - began)
    ours = statistics.median(seconds["ours"])
    print(title)
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"  {name:<28} {1e3 * median:8.2f} ms {num_bytes / median / 1e9:7.2f} GB/s"
            f"   ours is {median / ours:6.2f} x as fast"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    levels, offsets = videos(128)
    compare("mean of the frames of 128 videos", means(levels, offsets), levels.nbytes, rounds)
    levels, _ = videos(16)
    compare("frames of 16 videos", frames(levels), levels.nbytes, rounds)


if __name__ == "__main__":
    main()
