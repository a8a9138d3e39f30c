"""SegNet for melody: an encoder and decoder that hand over where each maximum came from.

Hsieh, Su and Yang, "A Streamlined Encoder/Decoder Architecture for Melody Extraction" (ICASSP 2019). Three
convolutions of 5 x 5, each followed by a maximum over 4 neighbouring bins, shrink the map along frequency; one more
over what remains gives the row "no melody"; the decoder puts each value back at the bin its maximum came from and
convolves. Every convolution is batch norm, convolution, SELU. 519,624 parameters at 320 bins (60 an octave), as the
released weights have; Gao et al. (2019) print 540.2 K.

Shapes: B clips, F bins, T frames.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mmray.models._published import renamed

_POOL, _STAGES = 4, 3
_WIDTHS = (3, 32, 64, 128)


class Config(BaseModel):
    """There is nothing to choose: the published architecture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "pitch_map"

    name: Literal["segnet"] = "segnet"

    def build(self, num_bins: int) -> SegNet:
        """The model for maps of `num_bins` (F) rows, a multiple of 64; ValueError for another number."""
        return SegNet(num_bins)


class SegNet(nn.Module):
    """Three stages down, three up.

    context_frames: frames on each side that an output frame depends on in eval mode, two for each of six convolutions.
    """

    context_frames = 12

    def __init__(self, num_bins: int = 320) -> None:
        super().__init__()
        step = _POOL**_STAGES
        if num_bins < step or num_bins % step:
            below = num_bins // step * step
            choices = f"{below} or {below + step}" if below > 0 else f"{step}"
            raise ValueError(f"segnet has {num_bins} bins; three pools of {_POOL} need a multiple of {step}: {choices}")
        self.num_bins = num_bins
        self.encoder = nn.ModuleList(_Layer(*widths) for widths in pairwise(_WIDTHS))
        # All the bins that are left make one row. At 320 bins this is the published 5 x 5.
        self.no_melody = _Layer(_WIDTHS[-1], 1, kernel=(num_bins // step, 5), padding=(0, 2))
        outputs = (64, 32, 1)
        self.decoder = nn.ModuleList(_Layer(*widths) for widths in zip(_WIDTHS[:0:-1], outputs, strict=True))
        self.pool = nn.MaxPool2d((_POOL, 1), return_indices=True)
        self.unpool = nn.MaxUnpool2d((_POOL, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, F + 1, T) of a map x (B, 3, F, T): row 0 "no melody", row r pitch r."""
        if x.dim() != 4 or x.shape[1:3] != (3, self.num_bins):
            raise ValueError(f"x has shape {tuple(x.shape)}; this segnet needs (B, 3, {self.num_bins}, T)")
        sources = []
        for layer in self.encoder:
            x, source = self.pool(layer(x))
            sources.append(source)
        no_melody = self.no_melody(x)
        for layer in self.decoder:
            x = layer(self.unpool(x, sources.pop()))
        return torch.cat([no_melody, x], dim=2).squeeze(1).float()


class _Layer(nn.Module):
    """Batch norm, convolution, SELU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (5, 5), padding: tuple[int, int] = (2, 2)
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, F, T) to (B, outputs, F, T)."""
        return F.selu(self.conv(self.norm(x)), inplace=True)


def rename_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' released state dict as one of `SegNet`, for as many bins as its weights say (the released: 320).

    ValueError if a key is missing or unknown, or a tensor has another shape than that model's.
    """
    last = state.get("bottom.1.weight")
    num_bins = _POOL**_STAGES * last.shape[2] if last is not None and last.dim() == 4 else 320
    with torch.device("meta"):
        ours = SegNet(num_bins).state_dict()
    names = {f"encoder.{i}": f"conv{i + 1}" for i in range(_STAGES)} | {"no_melody": "bottom"}
    names |= {f"decoder.{i}": f"up_conv{_STAGES - i}" for i in range(_STAGES)}
    return renamed(state, ours, names, f"SegNet for {num_bins} bins")
