"""Augmentation of batches of feature sequences during training: masks over time and features, and mixtures of examples.

Shapes: B examples, T frames, D features, K classes. An example is the frames before its length; what lies beyond is
padding, and stays as it is.

Masks: D. S. Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", Interspeech
2019. Mixtures: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018 (arXiv:1710.09412).

Random numbers come from torch's global generator on the CPU, so a seed gives the same ones on every device.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from mmray.config import Section


class Settings(Section):
    """How much of an example is masked; all 0 leaves it as it is.

    Every example draws its own runs, of uniform lengths from 0 up to the largest.
    """

    time_masks: int = Field(0, ge=0, description="runs of masked frames")
    time_mask_frames: int = Field(0, ge=0, description="most frames of a run")
    time_mask_share: float = Field(1.0, ge=0, le=1, description="no run covers more than this share of an example")
    feature_masks: int = Field(0, ge=0, description="runs of masked features")
    feature_mask_rows: int = Field(0, ge=0, description="most features of a run, as they are stacked")


def spec_augment(x: Tensor, lengths: Tensor, settings: Settings) -> Tensor:
    """Sequences (B, T, D) of `lengths` (B,) int64 with runs of frames, and of features, masked; a masked copy, or `x`.

    A masked place takes its feature's mean over the example, which says nothing about the frame, whether or not
    features are standardised. Runs of frames lie within the example. ValueError if the shapes don't fit.
    """
    _check(x, lengths)
    num_examples, num_frames, num_features = x.shape
    on_cpu = lengths.cpu()
    hidden = torch.zeros(num_examples, 1, 1, dtype=torch.bool)
    if settings.time_masks and settings.time_mask_frames:
        longest = (on_cpu * settings.time_mask_share).long().clamp(max=settings.time_mask_frames)
        hidden = hidden | _runs(settings.time_masks, longest, on_cpu, num_frames)[:, :, None]
    if settings.feature_masks and settings.feature_mask_rows:
        sizes = torch.full((num_examples,), num_features)
        longest = sizes.clamp(max=settings.feature_mask_rows)
        hidden = hidden | _runs(settings.feature_masks, longest, sizes, num_features)[:, None, :]
    if not hidden.any():
        return x
    valid = _valid(x, lengths)
    total = torch.where(valid, x, 0).sum(dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    mean = (total / lengths.clamp(min=1)[:, None, None]).to(x.dtype)
    return torch.where(hidden.to(x.device) & valid, mean, x)


def mixup(x: Tensor, lengths: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """`(x, lengths, labels)`, each example mixed with one of its batch: w of its own, 1 - w of the other's.

    x: (B, T, D), floating; lengths: (B,), int64; labels: (B, K), shares of the classes (one-hot or soft). Every example
    draws its own w from Beta(alpha, alpha), and its partner by a permutation of the batch. The example keeps its
    length: a longer partner is cut, a shorter one repeats from its start, and one without frames adds nothing.
    `alpha` 0 changes nothing. ValueError if the shapes don't fit, or for a negative alpha.
    """
    _check(x, lengths)
    if labels.ndim != 2 or len(labels) != len(x) or not labels.is_floating_point():
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and type {labels.dtype} for {len(x)} examples; "
            "give (B, K) shares of the classes, as one_hot(labels, K).float()"
        )
    if not alpha >= 0:
        raise ValueError(f"alpha={alpha} is below 0; 0 means no mixup, 0.2 is usual")
    if alpha == 0:
        return x, lengths, labels
    num_examples, num_frames, num_features = x.shape
    own = torch.distributions.Beta(alpha, alpha).sample((num_examples,)).to(x.device)
    partner = torch.randperm(num_examples).to(x.device)
    own = torch.where(lengths[partner] > 0, own, 1)
    frames = torch.arange(num_frames, device=x.device) % lengths[partner, None].clamp(min=1)  # (B, T)
    other = x[partner].gather(1, frames[:, :, None].expand(-1, -1, num_features))
    mixed = torch.lerp(other, x, own[:, None, None].to(x.dtype))
    shares = torch.lerp(labels[partner], labels, own[:, None].to(labels.dtype))
    return torch.where(_valid(x, lengths), mixed, x), lengths, shares


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """Which frames are no padding, bool (B, T, 1)."""
    return (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[:, :, None]


def _check(x: Tensor, lengths: Tensor) -> None:
    if x.ndim != 3 or not x.is_floating_point() or lengths.shape != x.shape[:1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}, lengths have shape {tuple(lengths.shape)}; "
            "expected (B, T, D) floats and (B,)"
        )


def _runs(num_runs: int, longest: Tensor, sizes: Tensor, num_places: int) -> Tensor:
    """Which places lie in one of the random runs of 0 to `longest` (B,) within the first `sizes` (B,), (B, places)."""
    random = torch.rand(2, len(sizes), num_runs, dtype=torch.float64)  # in float32 a product could be rounded up
    lengths = (random[0] * (longest[:, None] + 1)).long()
    starts = (random[1] * (sizes[:, None] - lengths + 1)).long()
    places = torch.arange(num_places)[:, None]
    return ((places >= starts[:, None]) & (places < (starts + lengths)[:, None])).any(dim=2)
