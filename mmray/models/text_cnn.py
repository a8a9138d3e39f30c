"""Convolutions of several widths over the words of a title, their maxima over time, a hidden layer.

Wang et al., "Truly Multi-modal YouTube-8M Video Classification with Video, Audio, and Text" (2017), section 3.4, after
Kim, "Convolutional Neural Networks for Sentence Classification" (EMNLP 2014). Batch norm stands before the ReLU of the
hidden layer, whose activations are the title feature that the paper hands to its mixture of experts. The rate of
dropout is not in the paper.

A convolution of width w looks at every word and the w - 1 behind it; behind a row's last word stand zeros. So every
maximum is over as many windows as the row has words, whatever rows are beside it, and a title shorter than a filter
counts too. A row without words has the embedding 0, does not take part in batch norm, and its logits are the biases.

Shapes: B rows, N words of all rows together, V numbers in a word vector, F filters a width, E hidden units, C classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmray.models._frames import BatchNorm
from mmray.models._words import WordConfig, require_offsets


class Config(WordConfig):
    """Hyper-parameters; the defaults are the paper's."""

    name: Literal["text_cnn"] = "text_cnn"
    num_widths: PositiveInt = 8
    """Filters are 1, 2, ... so many words wide."""
    channels: PositiveInt = 512
    """F, filters of each width."""
    hidden_size: PositiveInt = 4096
    """E."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Of the hidden layer's activations."""

    def build(self, vector_size: int, num_classes: int) -> TextCnn:
        """The model for word vectors of `vector_size` (V) numbers and `num_classes` (C) labels."""
        return TextCnn(vector_size, num_classes, self.num_widths, self.channels, self.hidden_size, self.dropout)


class TextCnn(nn.Module):
    """Words in, logits out. embedding_size: E."""

    def __init__(
        self, vector_size: int, num_classes: int, num_widths: int, channels: int, hidden_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embedding_size = hidden_size
        self.convolutions = WordConvolutions(vector_size, num_widths, channels)
        self.hidden = nn.Linear(num_widths * channels, hidden_size)
        self.norm = BatchNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The log-odds (B, C), float32, of every class for words x (N, V) of rows at offsets (B + 1,).

        ValueError for other shapes, and, where offsets are on the CPU, for such that do not ascend from 0 to N.
        """
        logits: Tensor = self.classifier(self.dropout(self.embed(x, offsets)))
        return logits.float()

    def embed(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The hidden layer's activations, (B, E) float32."""
        if x.dim() != 2 or x.shape[1] != self.convolutions.vector_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; this model needs (N, {self.convolutions.vector_size})")
        require_offsets(x, offsets)
        filled = offsets.diff() > 0
        maxima = self.convolutions(x, offsets)[filled]
        hidden = F.relu(self.norm(self.hidden(maxima).float()))
        embedding = hidden.new_zeros(len(filled), self.embedding_size)
        return embedding.masked_scatter(filled.unsqueeze(1), hidden)


class WordConvolutions(nn.Module):
    """Filters of widths 1 ... W and their maxima over a row's words, (B, W F); 0 for a row without words.

    A filter of width w is a row of `filters[w - 1]`, a layer of w V inputs: so it is initialised as PyTorch's
    convolutions are.
    """

    def __init__(self, vector_size: int, num_widths: int, channels: int) -> None:
        super().__init__()
        self.vector_size = vector_size
        self.filters = nn.ModuleList(nn.Linear(w * vector_size, channels) for w in range(1, num_widths + 1))

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Of words x (N, V) of rows at offsets (B + 1,)."""
        lengths = offsets.diff()
        windows = self._windows(x, offsets[1:].repeat_interleave(lengths))
        answers = torch.cat([linear(windows[:, : linear.in_features]).float() for linear in self.filters], dim=1)
        if not len(lengths):
            return answers  # which has no row either, and can't be reduced
        maxima = torch.segment_reduce(answers, "max", lengths=lengths, axis=0, initial=-math.inf)
        return torch.where((lengths > 0).unsqueeze(1), maxima, 0.0)

    def _windows(self, x: Tensor, ends: Tensor) -> Tensor:
        """Each word and the W - 1 behind it, (N, W V), zeros from the end of the word's row, `ends` (N,), on."""
        places = torch.arange(len(x), device=x.device).unsqueeze(1)
        places = places + torch.arange(len(self.filters), device=x.device)
        places = torch.where(places < ends.unsqueeze(1), places, len(x))
        return torch.cat([x, x.new_zeros(1, self.vector_size)])[places].flatten(1)
