"""Deep bag of frames: each of a few frames by itself in a wide layer, pooled over the frames, in no order.

Frames are normalised, projected to `projection_size` numbers, batch-normalised, rectified and pooled; a hidden layer
follows, batch-normalised and rectified too, and a mixture of experts reads it. Abu-El-Haija et al., "YouTube-8M: A
Large-Scale Video Classification Benchmark" (arXiv:1609.08675), section 4.1, with the normalised input of its published
starter kit. DBoF A and B of "Truly Multi-modal YouTube-8M Video Classification with Video, Audio, and Text" are a
projection to 8,192 numbers of 30 frames, 1,024 hidden, 2 experts; and 16,384 of 60 frames, 2,048 hidden, 16 experts.

Training draws `num_frames` frames of every row anew at each step, as the kit does: with replacement, so that a row of
any length gives so many. They come from torch's global generator. Outside training they are evenly spaced instead,
and as many, unless `eval_frames` says otherwise: the maximum over more frames than in training is another quantity.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from mmray.features.quantization import dequantize
from mmray.models._frames import BatchNorm, FrameClassifier, FrameConfig, row_lengths

NumFrames = PositiveInt | Literal["all"]


class Config(FrameConfig):
    """Hyper-parameters; see `FrameConfig` for those of every model of frames."""

    name: Literal["dbof"] = "dbof"
    num_frames: NumFrames = 30
    """Frames of a row that are looked at, or "all"."""
    eval_frames: NumFrames | None = None
    """The same outside training; None = `num_frames`."""
    projection_size: PositiveInt = 8192
    """P, numbers that a frame is projected to."""
    pooling: Literal["max", "mean"] = "max"
    hidden_size: PositiveInt = 1024
    """E, units of the hidden layer."""

    def build(self, input_size: int, num_classes: int) -> FrameClassifier:
        """The model for frames of `input_size` (D) features and `num_classes` (C) labels."""
        return self.classifier(Encoder(input_size, self), num_classes)


class Encoder(nn.Module):
    """(N, D) frames to the hidden layer (B, E). All frames of a row weigh the same; a row without any pools zeros."""

    def __init__(self, input_size: int, config: Config) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, config.hidden_size
        self.num_frames, self.eval_frames = config.num_frames, config.eval_frames or config.num_frames
        self.pooling = config.pooling
        self.input_norm = BatchNorm(input_size)
        self.projection = nn.Linear(input_size, config.projection_size, bias=False)
        self.projection_norm = BatchNorm(config.projection_size)
        self.hidden = nn.Linear(config.projection_size, config.hidden_size, bias=False)
        self.hidden_norm = BatchNorm(config.hidden_size)

    def forward(self, frames: Tensor, offsets: Tensor) -> Tensor:
        """See the class."""
        num_frames = self.num_frames if self.training else self.eval_frames
        (rows,) = offsets.diff().nonzero(as_tuple=True)
        width = self.projection.out_features
        if num_frames == "all":
            x = self._project(frames)
            parts = torch.split(x, [length for length in row_lengths(offsets) if length])
            pooled = torch.stack([self._pool(part, 0) for part in parts]) if parts else x
        else:
            chosen = (sample if self.training else spread)(offsets, rows, num_frames)
            pooled = self._pool(self._project(frames[chosen.flatten()]).view(*chosen.shape, width), 1)
        summary = pooled.new_zeros(len(offsets) - 1, width).index_copy(0, rows, pooled)
        return F.relu(self.hidden_norm(self.hidden(summary))).float()

    def _project(self, frames: Tensor) -> Tensor:
        x: Tensor = self.projection_norm(self.projection(self.input_norm(dequantize(frames))))
        return x

    def _pool(self, x: Tensor, dim: int) -> Tensor:
        """The pooled frames after the rectifier, which the maximum may come before: less is left to do then."""
        return F.relu(x.max(dim).values) if self.pooling == "max" else F.relu(x).mean(dim)


def sample(offsets: Tensor, rows: Tensor, num_frames: int) -> Tensor:
    """(R, num_frames) places of frames of R rows, each of which has some: drawn with replacement, all as likely."""
    lengths = offsets.diff()[rows].unsqueeze(1)
    places = (torch.rand(len(rows), num_frames, device=offsets.device) * lengths).long()
    return offsets[rows].unsqueeze(1) + torch.minimum(places, lengths - 1)  # a product may be rounded up


def spread(offsets: Tensor, rows: Tensor, num_frames: int) -> Tensor:
    """(R, num_frames) places of frames of R rows: the middles of `num_frames` equal parts of each."""
    lengths = offsets.diff()[rows].unsqueeze(1)
    middles = 2 * torch.arange(num_frames, device=offsets.device) + 1
    return offsets[rows].unsqueeze(1) + middles * lengths // (2 * num_frames)
