"""Augmentation of CFP maps and their target rows during training: a shift of pitch, and masks over time and frequency.

A CFP map's rows are spaced evenly in log-frequency, so a voice that sings an interval higher moves up by as many rows
in all three channels, harmonics and all, and its pitch with it. What moves in from outside is 0, the least value of a
scaled map, and so are masks.

Masks: D. S. Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", Interspeech
2019.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmray.config import Section


class Settings(Section):
    """How much a training example is altered; all 0 leaves it as it is.

    Every example draws its own numbers: a shift from -`pitch_shift_bins` to `pitch_shift_bins` rows, `time_masks` runs
    of 0 to `time_mask_frames` frames, and `frequency_masks` runs of 0 to `frequency_mask_bins` rows, each uniform.
    """

    pitch_shift_bins: int = Field(default=0, ge=0)
    time_masks: int = Field(default=0, ge=0)
    time_mask_frames: int = Field(default=0, ge=0)
    frequency_masks: int = Field(default=0, ge=0)
    frequency_mask_bins: int = Field(default=0, ge=0)


def augment(x: Tensor, target_rows: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Altered maps, their target rows, and which frames may count in the loss: `(x, target_rows, counted)`.

    x: (B, 3, F, T), floating, scaled to [0, 1]. target_rows: (B, T), int64, 0 = no melody, r = 1 ... F the pitch
    `cfp.Settings.pitches_hz()[r - 1]`. counted: (B, T), bool: false where a shift moved the pitch beyond the first or
    last of these; its target row is then 0. Masked frames count: their pitch is to be told from those around. What is
    altered is a copy.
    Random numbers come from torch's global generator on the CPU, so a seed gives the same ones on every device.
    ValueError if the shapes don't fit.
    """
    if x.ndim != 4 or target_rows.shape != (x.shape[0], x.shape[3]):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and target_rows {tuple(target_rows.shape)}; expected (B, 3, F, T) and (B, T)"
        )
    counted = torch.ones_like(target_rows, dtype=torch.bool)
    num_examples, _, num_bins, num_frames = x.shape
    if settings.pitch_shift_bins:
        bound = settings.pitch_shift_bins
        shift = torch.randint(-bound, bound + 1, (num_examples,)).to(x.device)
        x, target_rows, counted = shift_pitch(x, target_rows, shift)
    hidden = None
    if settings.time_masks and settings.time_mask_frames:
        frames = _runs(num_examples, settings.time_masks, settings.time_mask_frames, num_frames)
        hidden = frames[:, None, None, :]
    if settings.frequency_masks and settings.frequency_mask_bins:
        rows = _runs(num_examples, settings.frequency_masks, settings.frequency_mask_bins, num_bins)[:, None, :, None]
        hidden = rows if hidden is None else hidden | rows
    if hidden is not None:
        x = x.masked_fill(hidden.to(x.device), 0)
    return x, target_rows, counted


def shift_pitch(x: Tensor, target_rows: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps and targets, see `augment`, moved up by `shift` rows, int64 (B,), of either sign."""
    num_bins = x.shape[2]
    source = torch.arange(num_bins, device=x.device) - shift[:, None]  # (B, F)
    inside = (source >= 0) & (source < num_bins)
    index = source.clamp(0, num_bins - 1)[:, None, :, None].expand_as(x)
    x = x.gather(2, index).masked_fill(~inside[:, None, :, None], 0)
    voiced = target_rows > 0
    moved = target_rows + shift[:, None]
    lost = voiced & ((moved < 1) | (moved > num_bins))
    return x, torch.where(voiced & ~lost, moved, 0), ~lost


def _runs(num_examples: int, num_runs: int, max_length: int, size: int) -> Tensor:
    """Which of `size` places lie in one of the random runs of 0 to `max_length`, bool (B, size), on the CPU."""
    lengths = torch.randint(0, min(max_length, size) + 1, (num_examples, num_runs, 1))
    starts = (torch.rand(num_examples, num_runs, 1) * (size - lengths + 1)).long()
    places = torch.arange(size)
    return ((places >= starts) & (places < starts + lengths)).any(dim=1)
