"""What the models of quantised frames share: rows of any number of frames, one row after another, and none padded.

Every model is the same chain: an encoder, in which alone models differ, sums up the frames of each row in one vector; a
mixture of experts judges it (`mmray.models.moe`, whose fused loss is theirs too). Frames are uint8 until an encoder has
picked those that it looks at; a matrix product or a batch norm over frames is over frames that are there, so that there
is no padding whose content could matter.

Shapes: B rows, N frames of all rows together, D features, E numbers that sum up a row, C classes. The frames of row i
are frames[offsets[i]:offsets[i + 1]]; a row may have none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from mmray.models.moe import MixtureOfExperts

# Outside training, so many frames at a time: memory is bounded whatever the number of rows that are asked for.
_BLOCK_FRAMES = 1 << 14


class FrameConfig(BaseModel):
    """Hyper-parameters that all of them have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "frames"
    by_length: ClassVar[bool] = False
    """Whether rows of like length are computed in less time together than mixed with others, to the same result."""

    name: str
    inputs: list[str] | None = None
    """The frame-level columns whose features are concatenated, in this order; None = all that the dataset has."""
    num_experts: PositiveInt = 2
    """Of the mixture of experts, the dummy not counted."""
    l2_penalty: float = Field(default=1e-8, ge=0)
    """Half of this times the sum of the squared weights of the mixture is part of the training loss."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the numbers that the mixture reads."""

    def classifier(self, encoder: nn.Module, num_classes: int) -> FrameClassifier:
        """The whole model around an encoder."""
        return FrameClassifier(encoder, num_classes, self.num_experts, self.l2_penalty, self.dropout)


class FrameClassifier(nn.Module):
    """Frames in, logits out.

    The encoder maps (frames (N, D) uint8, offsets (B + 1,)) to (B, E) float32, and says D as `input_size` and E as
    `output_size`. In eval mode it treats each row by itself. embedding_size: E.
    """

    def __init__(
        self, encoder: nn.Module, num_classes: int, num_experts: int, l2_penalty: float, dropout: float
    ) -> None:
        super().__init__()
        self.embedding_size = int(encoder.output_size)  # type: ignore[arg-type]
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.mixture = MixtureOfExperts(self.embedding_size, num_classes, num_experts, l2_penalty)

    def forward(self, frames: Tensor, offsets: Tensor) -> Tensor:
        """The log-odds (B, C) of every class, float32, for the frames (N, D) uint8 of rows at offsets (B + 1,).

        ValueError for other shapes and types, and where offsets are on the CPU for offsets that do not ascend from 0 to
        N (elsewhere, looking would mean waiting for the device).
        """
        logits: Tensor = self.mixture(self.dropout(self.embed(frames, offsets)))
        return logits.float()

    def loss(self, frames: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows of the binary cross-entropy summed over classes, plus the mixture's L2 penalty: a scalar.

        labels: (B, C), bool. As of the mixture's loss, `backward` can be called once.
        """
        loss: Tensor = self.mixture.loss(self.dropout(self.embed(frames, offsets)), labels)
        return loss

    def embed(self, frames: Tensor, offsets: Tensor) -> Tensor:
        """What the mixture reads, (B, E) float32."""
        self._require_fit(frames, offsets)
        if len(offsets) == 1:
            return self.mixture.weight.new_zeros(0, self.embedding_size)
        if self.training or torch.is_grad_enabled():
            summary: Tensor = self.encoder(frames, offsets)
            return summary
        return torch.cat([self.encoder(*block) for block in _blocks(frames, offsets)])

    def _require_fit(self, frames: Tensor, offsets: Tensor) -> None:
        size = self.encoder.input_size
        if frames.dtype != torch.uint8 or frames.dim() != 2 or frames.shape[1] != size:
            raise ValueError(f"frames is {tuple(frames.shape)} {frames.dtype}; needed is (N, {size}) torch.uint8")
        if offsets.dim() != 1 or len(offsets) < 1 or offsets.dtype != torch.int64:
            raise ValueError(f"offsets is {tuple(offsets.shape)} {offsets.dtype}; it must be (B + 1,) torch.int64")
        if offsets.device.type == "cpu" and (
            offsets[0] != 0 or offsets[-1] != len(frames) or bool((offsets.diff() < 0).any())
        ):
            raise ValueError(f"offsets must ascend from 0 to the {len(frames)} frames; they are {offsets.tolist()}")


def _blocks(frames: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs of whole rows of at most `_BLOCK_FRAMES` frames, or of one row that has more."""
    bounds: list[int] = offsets.tolist()
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        while last < len(bounds) - 1 and bounds[last + 1] - bounds[first] <= _BLOCK_FRAMES:
            last += 1
        yield frames[bounds[first] : bounds[last]], offsets[first : last + 1] - bounds[first]
        first = last


def row_lengths(offsets: Tensor) -> list[int]:
    """The number of frames of each row. Waits for the device."""
    lengths: list[int] = offsets.diff().tolist()
    return lengths


def autocast_type(x: Tensor) -> torch.dtype:
    """The type of matrix products with x: bfloat16 where autocast says so, else that of x.

    Not float16, in which sums over hundreds of frames overflow.
    """
    device = x.device.type
    lowered = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if lowered else x.dtype


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (n, channels) for any n: fewer than two have no variance, and are normalised as outside training.

    A micro-batch may be as small as that, and all its rows may be without frames. Its statistics are those that count,
    for which reason models with batch norm are not `by_length`: short rows and long ones would be normed apart.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The shape and type of x."""
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
