"""What models of videos are called with: vectors, quantised frames or words, from the columns that a run names.

Each kind offers `columns`, the names read for a batch; `build()`, the model; `collate(table)`, tensors by name, on the
CPU; `tensors(batch, dropout)`, what the model is called with, on its device; and `filled(batch)`, which rows have
anything to look at at all. `dropout` maps an input to the probability with which a row goes without it.

Missing inputs. A vector that a row lacks is zeros, and where the dataset says so in a column `has_<input>`, that 0 or 1
is an input of its own, behind all vectors. A mixture of experts needs it: its gates have no bias, so that of a vector
of zeros they could learn nothing, not even that rare labels are less likely where nobody wrote a title. Frames and
words that a row lacks are none at all.

Shapes: B rows, D numbers, N frames or words of all rows together, V numbers in a word vector.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from mmray import config, lookup
from mmray.features.quantization import mean_of_frames
from mmray.features.word_vectors import WordVectors
from mmray.prepared import Int64s, frames_column, ragged_column, tensor_column
from mmray.schema import Column, DatasetInfo, is_feature
from mmray.tasks import Batch

Tensors = dict[str, torch.Tensor]
NO_LEVEL = 127  # the level nearest to 0, of a frame's feature that is left out


class Inputs(Protocol):
    """See the module's documentation."""

    @property
    def columns(self) -> tuple[str, ...]: ...
    def build(self) -> nn.Module: ...
    def collate(self, table: pa.Table) -> Tensors: ...
    def tensors(self, batch: Batch, dropout: Mapping[str, float]) -> tuple[torch.Tensor, ...]: ...
    def filled(self, batch: Batch) -> torch.Tensor: ...


def inputs_of(run: config.Run, info: DatasetInfo) -> Inputs:
    """Those of the run's model; ValueError where the dataset lacks one that the run names."""
    model: Any = run.model
    match model.takes:
        case "vectors":
            chosen = _chosen(model.inputs, [c for c in info.columns if is_feature(c) and c.dtype != "bytes"])
            there = {column.name for column in info.columns}
            flags = tuple(flag for column in chosen if (flag := f"has_{column.name}") in there)
            return Vectors(model, len(info.class_names), chosen, flags)
        case "frames":
            chosen = _chosen(model.inputs, [c for c in info.columns if _is_frames(c)])
            return Frames(model, len(info.class_names), chosen)
        case _:
            text = getattr(run.dataset, "text", None)
            if text is None:
                raise ValueError(f"model.name={model.name} reads words, and the dataset has none; set dataset.text")
            chosen = _chosen(model.inputs, [c for c in info.columns if c.unit == "word"])
            return Words(model, len(info.class_names), tuple(column.name for column in chosen), text)


def _chosen(wanted: Sequence[str] | None, there: Sequence[Column]) -> tuple[Column, ...]:
    """The columns that a run names, or all; ValueError for one that is not there, or none."""
    by_name = {column.name: column for column in there}
    names = list(by_name) if wanted is None else wanted
    if not names:
        raise ValueError(f"model.inputs is empty; choose from {sorted(by_name)}, or leave it out to take all")
    for name in names:
        if name not in by_name:
            raise ValueError(f"model.inputs: {name!r} is not a feature; {lookup.suggest(name, sorted(by_name))}")
    return tuple(by_name[name] for name in names)


def _is_frames(column: Column) -> bool:
    return column.dtype == "uint8" and len(column.shape) == 2 and column.shape[0] is None


def _size(columns: Sequence[Column]) -> int:
    return sum(cast(int, column.shape[-1]) for column in columns)


def _frames(table: pa.Table, column: Column) -> Tensors:
    frames, offsets = frames_column(table, column)
    return {column.name: torch.tensor(frames), f"{column.name}.offsets": torch.from_numpy(offsets)}


def _kept(batch: Batch, probability: float, device: torch.device) -> torch.Tensor:
    """Which rows keep an input that each loses with this probability, (B,) bool, by torch's generator."""
    return torch.rand(batch.num_rows, device=device) >= probability


@dataclass(frozen=True)
class Vectors:
    """Concatenated vectors, and behind them `flags`; frames are taken by their mean."""

    model: Any
    num_classes: int
    inputs: tuple[Column, ...]
    flags: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The vectors and their flags."""
        return (*(column.name for column in self.inputs), *self.flags)

    def build(self) -> nn.Module:
        """The model for D numbers: all vectors and a flag each."""
        module: nn.Module = self.model.build(_size(self.inputs) + len(self.flags), self.num_classes)
        return module

    def collate(self, table: pa.Table) -> Tensors:
        """Vectors keep their type and frames stay uint8: both are widened on the device."""
        tensors: Tensors = {}
        for column in self.inputs:
            if column.shape[0] is None:
                tensors |= _frames(table, column)
            else:
                tensors[column.name] = torch.tensor(tensor_column(table, column.name))
        for flag in self.flags:
            tensors[flag] = torch.tensor(table.column(flag).to_numpy())
        return tensors

    def tensors(self, batch: Batch, dropout: Mapping[str, float]) -> tuple[torch.Tensor]:
        """(x (B, D) float32,)."""
        vectors, flags = [], []
        for column in self.inputs:
            tensor, offsets = batch.tensors[column.name], batch.tensors.get(f"{column.name}.offsets")
            vector = tensor.float() if offsets is None else mean_of_frames(tensor, offsets)
            flag = batch.tensors.get(f"has_{column.name}")
            if probability := dropout.get(column.name):
                kept = _kept(batch, probability, vector.device)
                vector = vector * kept.unsqueeze(1)
                flag = None if flag is None else flag * kept
            vectors.append(vector)
            if flag is not None:
                flags.append(flag.float().unsqueeze(1))
        return (torch.cat([*vectors, *flags], dim=1),)

    def filled(self, batch: Batch) -> torch.Tensor:
        """Rows with any input: all, unless each input has a flag."""
        if len(self.flags) < len(self.inputs):
            return torch.ones(batch.num_rows, dtype=torch.bool)
        return torch.stack([batch.tensors[flag] for flag in self.flags]).any(0)


@dataclass(frozen=True)
class Frames:
    """Frames of several columns side by side, still quantised."""

    model: Any
    num_classes: int
    inputs: tuple[Column, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of frames."""
        return tuple(column.name for column in self.inputs)

    def build(self) -> nn.Module:
        """The model for D features a frame."""
        module: nn.Module = self.model.build(_size(self.inputs), self.num_classes)
        return module

    def collate(self, table: pa.Table) -> Tensors:
        """ValueError, naming the row, where one input has another number of frames than the first."""
        tensors: Tensors = {}
        first = f"{self.inputs[0].name}.offsets"
        for column in self.inputs:
            tensors |= _frames(table, column)
            different = (tensors[f"{column.name}.offsets"].diff() != tensors[first].diff()).nonzero()
            if len(different):
                name = table.column("id")[int(different[0])] if "id" in table.column_names else int(different[0])
                raise ValueError(f"row {name}: {column.name} has another number of frames than {self.inputs[0].name}")
        return tensors

    def tensors(self, batch: Batch, dropout: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
        """(frames (N, D) uint8, offsets (B + 1,)). An input that a row goes without is a level that stands for 0."""
        offsets = batch.tensors[f"{self.inputs[0].name}.offsets"]
        parts = []
        for column in self.inputs:
            frames = batch.tensors[column.name]
            if probability := dropout.get(column.name):
                lost = ~_kept(batch, probability, frames.device).repeat_interleave(offsets.diff())
                frames = frames.masked_fill(lost.unsqueeze(1), NO_LEVEL)
            parts.append(frames)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), offsets

    def filled(self, batch: Batch) -> torch.Tensor:
        """Rows that have a frame."""
        return batch.tensors[f"{self.inputs[0].name}.offsets"].diff() > 0

    def lengths(self, table: pa.Table) -> Int64s | None:
        """Frames of each row, where rows of like length are computed in less time together; else None."""
        if not self.model.by_length:
            return None
        return np.diff(frames_column(table, self.inputs[0])[1])


@dataclass(frozen=True)
class Words:
    """Words of several columns, those of a row one after another: their vectors, looked up here, or their numbers."""

    model: Any
    num_classes: int
    columns: tuple[str, ...]
    text: Any  # the section of the dataset

    def build(self) -> nn.Module:
        """The model for word vectors of V numbers."""
        module: nn.Module = self.model.build(self.text.vector_size, self.num_classes)
        return module

    @functools.cached_property
    def vectors(self) -> WordVectors:
        """The table of word vectors, mapped."""
        table: WordVectors = self.text.open_vectors()
        return table

    def collate(self, table: pa.Table) -> Tensors:
        """`words`, (N, V) float32 or numbers (N,) int64, and `words.offsets`."""
        raggeds = [ragged_column(table, name) for name in self.columns]
        numbers = np.concatenate([values for values, _ in raggeds]).astype(np.int64)
        offsets = np.sum([offsets for _, offsets in raggeds], axis=0)
        if len(raggeds) > 1:
            rows = np.concatenate([np.repeat(np.arange(table.num_rows), np.diff(offsets)) for _, offsets in raggeds])
            numbers = numbers[np.argsort(rows, kind="stable")]
        words = numbers if self.model.words == "numbers" else self.vectors.take(numbers)
        return {"words": torch.tensor(words), "words.offsets": torch.from_numpy(offsets)}

    def tensors(self, batch: Batch, dropout: Mapping[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
        """(words, offsets (B + 1,))."""
        return batch.tensors["words"], batch.tensors["words.offsets"]

    def filled(self, batch: Batch) -> torch.Tensor:
        """Rows that have a word."""
        return batch.tensors["words.offsets"].diff() > 0
