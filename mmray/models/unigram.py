"""A unigram language model a label: the baseline that counts words.

Of n training videos, n(l) have the label l, and n(k, l) of these have the word k in their text. A text k_1 ... k_m is
taken for m independent draws:

    P(l | k_1 ... k_m) = const * n(l) / n * prod over i of (n(k_i, l) + alpha) / (n(l) + alpha |L|)

|L| labels; the constant makes the sum over labels 1. A text without words gives n(l) / sum n. A word counts once for a
video that has it several times, for n(k, l) counts videos; in the product it counts each time.

Wang et al., "Truly Multi-modal YouTube-8M Video Classification with Video, Audio, and Text" (2017), equation 3, with
alpha 0.001.

Nothing is descended here: `fit` counts every training video once, exactly, in every process alike, which no number of
steps of a training loop would do, for an epoch leaves out what does not fill a batch, and a second one counts twice.
Counts are whole numbers in buffers; so training, checkpoints and prediction are as of any model. Most pairs of a word
and a label never occur: those that do are kept as a sorted list, word by word, in a buffer of fixed size, for a
checkpoint is loaded into a model of the same shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from mmray.losses import binary_cross_entropy
from mmray.models._words import WordConfig, require_offsets, rows_of

_NONE = torch.iinfo(torch.int64).max  # beyond every pair
_LARGEST_LOGIT = 1e4  # a label that never occurred has -infinity, of which no loss can be computed
_PAIRS_AT_ONCE = 1 << 24


class Config(WordConfig):
    """Settings."""

    words: ClassVar[Literal["vectors", "numbers"]] = "numbers"

    name: Literal["unigram"] = "unigram"
    alpha: PositiveFloat = 0.001
    """Added to each count of a word and a label."""
    max_pairs: PositiveInt = Field(default=1 << 20)
    """Room for so many different pairs of a word and a label: 12 bytes each, also in a checkpoint."""

    def build(self, vector_size: int, num_classes: int) -> Unigram:
        """The model for `num_classes` (C) labels; it knows words by number."""
        return Unigram(num_classes, self.alpha, self.max_pairs)


class Unigram(nn.Module):
    """Counts; `pairs` are word * C + label, ascending, and `pair_counts` n(k, l) of each.

    Sums are of float64. `unused` is there because an optimiser and a data-parallel wrapper refuse a model without a
    parameter; its gradient is 0.
    """

    num_rows: Tensor
    label_counts: Tensor
    pairs: Tensor
    pair_counts: Tensor

    def __init__(self, num_classes: int, alpha: float, max_pairs: int) -> None:
        super().__init__()
        self.num_classes, self.alpha = num_classes, alpha
        self.register_buffer("num_rows", torch.zeros((), dtype=torch.int64))
        self.register_buffer("label_counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("pairs", torch.full((max_pairs,), _NONE))
        self.register_buffer("pair_counts", torch.zeros(max_pairs, dtype=torch.int32))
        self.unused = nn.Parameter(torch.zeros(()))

    @property
    def is_fitted(self) -> bool:
        """Whether anything was counted."""
        return bool(self.num_rows)

    def fit(self, rows: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Count all training rows: words (N,), offsets (B + 1,) and labels (B, C) bool, a piece at a time.

        ValueError where they have more different pairs than there is room for.
        """
        num_rows, label_counts = 0, torch.zeros_like(self.label_counts)
        pairs, counts = self.pairs[:0], self.pair_counts[:0].long()
        pending: list[Tensor] = []
        for words, offsets, labels in rows:
            num_rows += len(labels)
            label_counts += labels.sum(0).to(label_counts)
            pending.append(_pairs_of(words, offsets, labels).to(pairs))
            if sum(map(len, pending)) > _PAIRS_AT_ONCE:
                pairs, counts = _merged(pairs, counts, pending)
                pending = []
        pairs, counts = _merged(pairs, counts, pending)
        if len(pairs) > len(self.pairs):
            raise ValueError(
                f"model.max_pairs={len(self.pairs):,}, but the training rows have {len(pairs):,} different pairs of a "
                "word and a label; set it to that"
            )
        self.pairs.fill_(_NONE)[: len(pairs)] = pairs
        self.pair_counts.zero_()[: len(pairs)] = counts.to(self.pair_counts)
        self.label_counts.copy_(label_counts)
        self.num_rows.fill_(num_rows)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The log-odds (B, C), float32, of every label for word numbers x (N,) of rows at offsets (B + 1,).

        A number that no training row had, or a label that none had, is no error: the formula has an answer.
        ValueError for other shapes, and before `fit`.
        """
        if x.dim() != 1 or x.is_floating_point():
            raise ValueError(f"x is {tuple(x.shape)} {x.dtype}; this model needs the numbers of words, (N,)")
        require_offsets(x, offsets)
        if not self.is_fitted:
            raise ValueError("a unigram model has counted nothing yet; fit it to the training rows")
        logarithms = self._log_joint(x.long(), offsets)
        return _log_odds(logarithms).clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT).float()

    def loss(self, x: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
        """Mean over rows of the binary cross-entropy summed over classes: to be looked at, not to be descended."""
        return binary_cross_entropy(self(x, offsets), labels) + 0 * self.unused

    def _log_joint(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The logarithm of the formula without its constant, (B, C) float64."""
        labels = self.label_counts.double()
        lengths = offsets.diff().unsqueeze(1)
        # As if no word had ever occurred with any label, and then what the pairs that did occur change.
        joint = (labels / self.num_rows).log() + lengths * (
            math.log(self.alpha) - (labels + self.alpha * self.num_classes).log()
        )
        first = torch.searchsorted(self.pairs, x * self.num_classes)
        last = torch.searchsorted(self.pairs, (x + 1) * self.num_classes)
        found = last - first  # labels that each word occurs with
        ends = found.cumsum(0)
        places = torch.arange(int(found.sum()), device=x.device) + (first - ends + found).repeat_interleave(found)
        rows = rows_of(offsets).repeat_interleave(found)
        cells = rows * self.num_classes + self.pairs[places] % self.num_classes
        return (
            joint.flatten().index_add(0, cells, (self.pair_counts[places].double() / self.alpha).log1p()).view_as(joint)
        )


def _pairs_of(words: Tensor, offsets: Tensor, labels: Tensor) -> Tensor:
    """word * C + label of every different word of a row and every label of the row, (n,) int64."""
    in_row: Tensor = torch.unique(torch.stack([rows_of(offsets), words.long()], dim=1), dim=0)
    chosen = labels[in_row[:, 0]].nonzero()
    pairs: Tensor = in_row[chosen[:, 0], 1] * labels.shape[1] + chosen[:, 1]
    return pairs


def _merged(pairs: Tensor, counts: Tensor, pending: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Different pairs, ascending, and how often each occurred, with those that were seen since."""
    every, places, new = torch.unique(torch.cat([pairs, *pending]), return_inverse=True, return_counts=True)
    new[places[: len(pairs)]] += counts - 1
    return every, new


def _log_odds(logarithms: Tensor) -> Tensor:
    """log p - log(1 - p) of p = softmax of (B, C), without the rounding of 1 - p where p is nearly 1."""
    top = logarithms.argmax(1, keepdim=True)
    total = logarithms.logsumexp(1, keepdim=True)
    rest = total + torch.log1p(-(logarithms - total).exp())
    others = logarithms.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    return logarithms - rest.scatter(1, top, others)
