"""Logistic regression over a vector, one per class: the linear baseline of the multi-label classifiers.

Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark" (arXiv:1609.08675), section 4.2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mmray.losses import binary_cross_entropy


class Config(BaseModel):
    """Hyper-parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "vectors"

    name: Literal["logistic"] = "logistic"
    inputs: list[str] | None = None
    """The modalities that are concatenated, in this order; None = all that the dataset has."""
    l2_penalty: float = Field(default=1e-8, ge=0)
    """Half of this times the sum of the squared weights (not the biases) is part of the training loss."""

    def build(self, input_size: int, num_classes: int) -> Logistic:
        """The model for vectors of `input_size` (D) numbers and `num_classes` (C) labels."""
        return Logistic(input_size, num_classes, self.l2_penalty)


class Logistic(nn.Module):
    """One linear unit a class. Xavier-uniform weights, biases 0."""

    def __init__(self, input_size: int, num_classes: int, l2_penalty: float = 1e-8) -> None:
        super().__init__()
        self.l2_penalty = l2_penalty
        self.linear = nn.Linear(input_size, num_classes)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The log-odds, shape (B, C), of every class for the vectors x, shape (B, D)."""
        logits: Tensor = self.linear(x)
        return logits

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows of the binary cross-entropy summed over classes, plus the L2 penalty: a scalar.

        x: (B, D); labels: (B, C), bool.
        """
        weight = self.linear.weight.flatten()
        return binary_cross_entropy(self(x), labels) + self.l2_penalty / 2 * torch.dot(weight, weight)
