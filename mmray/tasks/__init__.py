"""Tasks: what a row means. One task a module; the module's name is its name in a run file.

Every module offers `Config` and a class `Task(run, info)` with

- `monitor`: the metric that picks the best checkpoint, and `maximise`: whether more of it is better;
- `columns(labelled)`: the columns of the prepared dataset that a batch is made of;
- `build_model()`: the run's model, freshly initialised;
- `collate(table) -> Batch`: rows to tensors, on the CPU;
- `loss(model, batch)`: the training loss, a mean over the rows of the batch;
- `evaluate(model, batch) -> (scores, loss)`: predictions, and the loss summed over rows (0 without labels);
- `new_metrics()`: an accumulator with `update(scores, batch)`, `merge(other)`, `state()` and `compute()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import torch

from mmray import config, lookup
from mmray.schema import DatasetInfo


@dataclass(frozen=True)
class Batch:
    """`num_rows` rows as named tensors, and their ids."""

    num_rows: int
    tensors: Mapping[str, torch.Tensor]

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, copied without waiting where its memory is pinned."""
        if device.type == "cpu":
            return self
        return Batch(self.num_rows, {k: v.to(device, non_blocking=True) for k, v in self.tensors.items()})

    def pinned(self) -> Batch:
        """The same batch in page-locked memory."""
        return Batch(self.num_rows, {k: v.pin_memory() for k, v in self.tensors.items()})


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
    info: DatasetInfo

    def columns(self, labelled: bool) -> tuple[str, ...]: ...  # noqa: D102
    def build_model(self) -> torch.nn.Module: ...  # noqa: D102
    def collate(self, table: pa.Table) -> Batch: ...  # noqa: D102
    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor: ...  # noqa: D102
    def evaluate(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, float]: ...  # noqa: D102
    def new_metrics(self) -> Metrics: ...  # noqa: D102


def monitored(run: config.Run, task: Task) -> tuple[str, bool]:
    """The metric that picks the best checkpoint of a run, and whether more of it is better."""
    name = run.train.monitor or task.monitor
    return name, task.maximise if name == task.monitor else not name.endswith("loss")


def build(run: config.Run, info: DatasetInfo) -> Task:
    """The task that a run names, over the dataset it runs on."""
    module: ModuleType = lookup.load("task", run.task.name)  # type: ignore[attr-defined]
    task: Task = module.Task(run, info)
    return task
