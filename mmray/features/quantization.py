"""YouTube-8M's 8-bit quantisation: a feature in [-2, 2] is stored as one of 256 levels.

A level stands for `level * 4/255 + 4/512 - 2`.
"""

from __future__ import annotations

import torch

SCALE = 4 / 255
BIAS = 4 / 512 - 2


def mean_of_frames(levels: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Mean dequantised frame of each video: levels (frames of all videos, D) uint8, offsets (B + 1,) to (B, D).

    A video without frames gives zeros. Source of the formula: YouTube-8M's video-level features.
    """
    lengths = offsets.diff()
    total = torch.segment_reduce(levels.float(), "sum", lengths=lengths, axis=0, initial=0)
    mean = total / lengths.clamp(min=1).unsqueeze(1)
    return torch.where(lengths.unsqueeze(1) > 0, mean * SCALE + BIAS, 0.0)
