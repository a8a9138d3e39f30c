"""YouTube-8M's 8-bit quantisation: a feature in [-2, 2] is stored as one of 256 levels.

A level stands for `level * 4/255 + 4/512 - 2`. On a CPU both functions are one pass over the levels.
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator, no-untyped-def"

from __future__ import annotations

import numpy as np
import torch

from mmray.features.native import compiled

SCALE = 4 / 255
BIAS = 4 / 512 - 2

# Sums of levels are held in 16 bits, twice as many at once as in 32, for so many frames that none can overflow.
_FRAMES_OF_16_BITS = (2**16 - 1) // 255


def dequantize(levels: torch.Tensor) -> torch.Tensor:
    """The features that levels stand for: uint8 of any shape to float32. ValueError for another type."""
    _require_uint8(levels)
    if levels.device.type != "cpu":
        return levels.float() * SCALE + BIAS
    features = torch.empty(levels.shape)
    _dequantize(levels.contiguous().view(-1).numpy(), features.view(-1).numpy())
    return features


def mean_of_frames(levels: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Mean dequantised frame of each video: levels (frames of all videos, D) uint8, offsets (B + 1,) to (B, D).

    A video without frames gives zeros. ValueError for levels of another type, and on a CPU for offsets that do not
    ascend from 0 to the number of frames. Source of the formula: YouTube-8M's video-level features.
    """
    _require_uint8(levels)
    lengths = offsets.diff()
    if levels.device.type == "cpu":
        if offsets[0] != 0 or offsets[-1] != len(levels) or (lengths < 0).any():
            raise ValueError(f"offsets must ascend from 0 to the {len(levels)} frames; they are {offsets.tolist()}")
        mean = torch.empty(len(lengths), levels.shape[1])
        _mean_of_frames(levels.contiguous().numpy(), offsets.numpy(), mean.numpy())
        return mean
    total = torch.segment_reduce(levels.float(), "sum", lengths=lengths, axis=0, initial=0)
    mean = total / lengths.clamp(min=1).unsqueeze(1)
    return torch.where(lengths.unsqueeze(1) > 0, mean * SCALE + BIAS, 0.0)


def _require_uint8(levels: torch.Tensor) -> None:
    if levels.dtype != torch.uint8:
        raise ValueError(f"levels are {levels.dtype}; quantised features are torch.uint8")


_SCALE_32, _BIAS_32 = np.float32(SCALE), np.float32(BIAS)


@compiled
def _dequantize(levels, features):
    """Both (n,)."""
    for i in range(len(levels)):
        features[i] = np.float32(levels[i]) * _SCALE_32 + _BIAS_32


@compiled
def _mean_of_frames(levels, offsets, means):
    """(N, D), (B + 1,), (B, D). Sums are exact, and each mean is rounded once."""
    num_features = levels.shape[1]
    part = np.empty(num_features, np.uint16)
    total = np.empty(num_features, np.uint32)
    for row in range(len(means)):
        begin, end = offsets[row], offsets[row + 1]
        if begin == end:
            means[row] = 0
            continue
        total[:] = 0
        for first in range(begin, end, _FRAMES_OF_16_BITS):
            part[:] = 0
            for frame in range(first, min(first + _FRAMES_OF_16_BITS, end)):
                one = levels[frame]
                for d in range(num_features):
                    part[d] += one[d]
            for d in range(num_features):
                total[d] += part[d]
        scale = SCALE / (end - begin)
        for d in range(num_features):
            means[row, d] = np.float32(total[d] * scale + BIAS)
