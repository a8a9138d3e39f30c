"""Losses that more than one model shares.

Every loss is a mean over rows, so that it doesn't depend on the batch size; over the classes of a row it sums, as
independent decisions do. An empty batch has loss 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over rows of the binary cross-entropy summed over classes: a scalar, in float32 or better.

    logits: (B, C), log-odds; labels: (B, C), bool or 0 and 1. ValueError if the shapes differ.
    """
    if logits.shape != labels.shape:
        raise ValueError(f"logits have shape {tuple(logits.shape)}, labels {tuple(labels.shape)}; both must be (B, C)")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
    return total / max(1, len(logits))


def pitch_loss(logits: Tensor, rows: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy of a softmax over pitches against one-hot targets: a scalar, in float32 or better.

    logits: (B, R, T), the softmax is over R; rows: (B, T) int64, the right row of each frame; counted: (B, T) bool.
    Summed over R, mean over the counted frames of a clip, mean over clips; a clip without any counts as 0. What
    Hsieh et al. (ICASSP 2019) and Gao et al. (APSIPA 2019) train with: beside the right row, the others' complements.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = logits.log_softmax(1)
    # A probability may round to 1, whose complement has no logarithm.
    log_not_p = torch.log1p(-log_p.exp().clamp(max=1 - torch.finfo(log_p.dtype).eps))
    right = rows.unsqueeze(1)
    per_frame = (log_not_p.gather(1, right) - log_p.gather(1, right)).squeeze(1) - log_not_p.sum(1)
    weights = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return (per_frame * weights).sum() / max(1, len(logits))


def multilabel_loss(model: nn.Module, labels: Tensor, *inputs: Tensor) -> Tensor:
    """The training loss of a multi-label model for labels (B, C), bool, and its inputs: a scalar.

    A model that has a `loss(*inputs, labels)` of its own, because it can do better than by way of its logits, is asked
    for it; any other is given `binary_cross_entropy`. Under DistributedDataParallel call this inside the wrapped
    module's forward, not with the wrapper: gradients are synchronised only for what passes through its forward.
    """
    own: Callable[..., Tensor] | None = getattr(model, "loss", None)
    return binary_cross_entropy(model(*inputs), labels) if own is None else own(*inputs, labels)
