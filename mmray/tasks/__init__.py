"""Tasks: what a row means. One task a module; the module's name is its name in a run file.

Every module offers `Config` and a class `Task(run, info)` with

- `monitor`: the metric that picks the best checkpoint, and `maximise`: whether more of it is better;
- `all_labelled`: whether every row that is trained or validated on must have a label;
- `columns(labelled)`: the columns of the prepared dataset that a batch is made of;
- `build_model()`: the run's model, freshly initialised;
- `describe(model)`: what a report says of the model beside its number of parameters, as plain values;
- `augmented(table, epoch) -> table`: training rows, changed anew for an epoch: the same for one seed, row and epoch;
- `collate(table) -> Batch`: rows to tensors, on the CPU;
- `loss(model, batch)`: the training loss, a mean over the rows of the batch;
- `evaluate(model, batch) -> (scores, loss)`: predictions, and the loss summed over rows (0 without labels);
- `new_metrics()`: an accumulator with `update(scores, batch)`, `merge(other)`, `state()` and `compute()`;
- `prediction_columns(split)`: what is stored for the rows of a split: columns of theirs, by name, such as `id`, and new
  ones;
- `predictions(columns, rows, scores)`: the stored rows, with the columns announced;
- `score(folder)`: `metrics` (name to value), `baselines` (name to metrics) and the task's own tables, such as
  `per_class`, from stored predictions;
- `examples(scored)`: what a report shows of single rows: (ids, columns of the prepared dataset, facts to draw them
  by); no id where there is nothing to show.

A task that works on single files (a song in, a contour out) also has `predict_file`: see `FileTask`. One whose rows
may have nothing that a model could look at has `filled(batch)`, which rows do, (B,) bool: the others are not embedded.
One whose rows differ in length has `lengths(table)`, (rows,) or None: rows of like length are then computed together.
One of images also has `heat(model, rows)`, where a model looked; `views(batch)`, what it is shown; and
`deployed(model)`, a module with the preprocessing inside and what it needs to know as `.facts`.
One whose rows take the longer the longer they are has `lengths(table)`: see `mmray.training.feed.micro_batches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import torch

from mmray import config, lookup
from mmray.schema import Column, DatasetInfo, SplitInfo


@dataclass(frozen=True)
class Batch:
    """`num_rows` rows as named tensors; and their ids, where the task has a use for them."""

    num_rows: int
    tensors: Mapping[str, torch.Tensor]
    ids: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, copied without waiting where its memory is pinned."""
        if device.type == "cpu":
            return self
        return replace(self, tensors={k: v.to(device, non_blocking=True) for k, v in self.tensors.items()})

    def pinned(self) -> Batch:
        """The same batch in page-locked memory."""
        return replace(self, tensors={k: v.pin_memory() for k, v in self.tensors.items()})


class Metrics(Protocol):
    """An accumulator of metrics over rows, mergeable over processes in any order."""

    def update(self, scores: torch.Tensor, batch: Batch) -> None:
        """Take in the predictions for the rows of a batch."""

    def state(self) -> dict[str, Any]:
        """All that was taken in, as arrays."""

    def merge(self, state: dict[str, Any]) -> None:
        """Take in another process's `state()`."""

    def compute(self) -> dict[str, float]:
        """The metrics by name."""


class Task(Protocol):
    """See the module's documentation."""

    monitor: ClassVar[str]
    maximise: ClassVar[bool]
    all_labelled: ClassVar[bool]
    info: DatasetInfo

    def columns(self, labelled: bool) -> tuple[str, ...]: ...  # noqa: D102
    def build_model(self) -> torch.nn.Module: ...  # noqa: D102
    def describe(self, model: torch.nn.Module) -> dict[str, Any]: ...  # noqa: D102
    def augmented(self, table: pa.Table, epoch: int) -> pa.Table: ...  # noqa: D102
    def collate(self, table: pa.Table) -> Batch: ...  # noqa: D102
    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor: ...  # noqa: D102
    def evaluate(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, float]: ...  # noqa: D102
    def new_metrics(self) -> Metrics: ...  # noqa: D102
    def prediction_columns(self, split: SplitInfo) -> list[Column]: ...  # noqa: D102
    def predictions(self, columns: list[Column], rows: pa.Table, scores: torch.Tensor) -> pa.Table: ...  # noqa: D102
    def score(self, folder: Path) -> dict[str, Any]: ...  # noqa: D102
    def examples(self, scored: dict[str, Any]) -> tuple[list[str], tuple[str, ...], dict[str, str]]: ...  # noqa: D102


class FileTask(Task, Protocol):
    """A task that works on single files: a song in, a contour out."""

    def files(self, source: str) -> list[Path]:
        """The files that `source` (a file, a folder or a pattern) names; ValueError where there is none."""

    def outputs(self, files: list[Path], out: Path, extras: frozenset[str]) -> list[dict[str, Path]]:
        """What will be written for each file, by kind; `extras` asks for kinds beyond the first.

        `out` is a file where there is one file, a folder where there are several. ValueError for a kind that the task
        does not know, and for outputs that would collide.
        """

    def predict_file(self, model: torch.nn.Module, device: torch.device, file: Path, outputs: dict[str, Path]) -> str:
        """Predict one file and write its outputs, each whole; return a line that says what was found."""


def monitored(run: config.Run, task: Task) -> tuple[str, bool]:
    """The metric that picks the best checkpoint of a run, and whether more of it is better."""
    name = run.train.monitor or task.monitor
    return name, task.maximise if name == task.monitor else not name.endswith("loss")


def require_model(run: config.Run, takes: str | tuple[str, ...]) -> None:
    """ValueError, with the models that fit, where the run's model takes none of the task's kinds of input."""
    kinds = (takes,) if isinstance(takes, str) else takes
    if getattr(run.model, "takes", None) not in kinds:
        fitting = [n for n in lookup.names("model") if getattr(lookup.load("model", n).Config, "takes", None) in kinds]
        model, task = f"model.name={run.model.name}", f"task.name={run.task.name}"  # type: ignore[attr-defined]
        raise ValueError(
            f"{model} is not for {task}, whose models take {' or '.join(kinds)}; choose from {', '.join(fitting)}"
        )


def build(run: config.Run, info: DatasetInfo) -> Task:
    """The task that a run names, over the dataset it runs on."""
    module: ModuleType = lookup.load("task", run.task.name)  # type: ignore[attr-defined]
    task: Task = module.Task(run, info)
    return task
