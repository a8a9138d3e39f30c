"""Losses."""

import torch
import torch.nn.functional as F


def binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over rows, sum over classes."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="sum") / max(1, len(logits))
