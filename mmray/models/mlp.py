"""Two dense layers over a vector: the paper's classifier of keyword histograms.

Wang et al., "Truly Multi-modal YouTube-8M Video Classification with Video, Audio, and Text" (2017), section 3.3: two
fully connected layers and a sigmoid. The size of the first is not in the paper.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn


class Config(BaseModel):
    """Hyper-parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "vectors"

    name: Literal["mlp"] = "mlp"
    inputs: list[str] | None = None
    """The modalities that are concatenated, in this order; None = all that the dataset has."""
    hidden_size: PositiveInt = 2048
    """E, the units of the first layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the first layer's activations."""

    def build(self, input_size: int, num_classes: int) -> Mlp:
        """The model for vectors of `input_size` (D) numbers and `num_classes` (C) labels."""
        return Mlp(input_size, num_classes, self.hidden_size, self.dropout)


class Mlp(nn.Module):
    """A layer with ReLU, and one that classifies. embedding_size: E."""

    def __init__(self, input_size: int, num_classes: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding_size = hidden_size
        self.hidden = nn.Linear(input_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The log-odds, shape (B, C), of every class for the vectors x, shape (B, D)."""
        logits: Tensor = self.classifier(self.dropout(self.embed(x)))
        return logits.float()

    def embed(self, x: Tensor) -> Tensor:
        """The first layer's activations, (B, E) float32."""
        return F.relu(self.hidden(x)).float()
