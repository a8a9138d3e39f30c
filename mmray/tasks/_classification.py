"""What tasks with one class a row share: the loss, metrics over batches, and the scores of stored predictions.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field

from mmray import predictions
from mmray.files import written_whole
from mmray.metrics.classification import ClassificationMetrics, bootstrap_interval, class_weights
from mmray.prepared import ragged_column, tensor_column
from mmray.schema import Column, DatasetInfo
from mmray.tasks import Batch

ClassWeights = Annotated[
    Literal["inverse_frequency", "none"],
    Field(description="inverse_frequency: a row of class c counts N / (K n_c) in the loss"),
]


def weights_of(setting: ClassWeights, info: DatasetInfo) -> torch.Tensor | None:
    """The weight of each class in the loss, (K,) float32; None where all rows count alike."""
    if setting == "none":
        return None
    return torch.tensor(class_weights(info.split("train").label_counts or []), dtype=torch.float32)


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Of each row, (B,): targets (B, K) sum to 1; a class's share counts by the weight of the class."""
    targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
    if weights is not None:
        targets = targets * weights.to(targets.device)
    return -(targets * logits.float().log_softmax(1)).sum(1)


def labels_of(table: pa.Table, kind: str) -> torch.Tensor:
    """The class of each row, (B,) int64; ValueError, naming the row and what `kind` it is, unless each has just one."""
    labels, offsets = ragged_column(table, "labels")
    wrong = np.diff(offsets) != 1
    if wrong.any():
        name = table.column("id")[int(wrong.argmax())]
        raise ValueError(f"{kind} {name} has no label; label it, or leave it out of this split")
    return torch.tensor(labels.astype(np.int64))


class BatchMetrics:
    """`ClassificationMetrics` over batches; `named` gives the metrics of what was taken in."""

    def __init__(
        self,
        num_classes: int,
        named: Callable[[ClassificationMetrics], dict[str, float]] = ClassificationMetrics.compute,
    ) -> None:
        self.classification = ClassificationMetrics(num_classes)
        self._named = named

    def update(self, scores: torch.Tensor, batch: Batch) -> None:
        """Take in probabilities (B, K) and the labels of the batch."""
        self.classification.update(scores.numpy(), batch.tensors["labels"].numpy())

    def state(self) -> dict[str, Any]:
        """All that was taken in, as arrays."""
        return self.classification.state()

    def merge(self, state: dict[str, Any]) -> None:
        """Take in another process's `state()`."""
        self.classification.merge(state)

    def compute(self) -> dict[str, float]:
        """The metrics by name."""
        return self._named(self.classification)


def with_scores(columns: list[Column], rows: pa.Table, scores: torch.Tensor) -> pa.Table:
    """The stored rows: columns of theirs, and `scores`, their probabilities (B, K)."""
    new = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(scores.numpy()))
    return pa.table({c.name: new if c.name == "scores" else rows.column(c.name) for c in columns})


def read_scored(folder: Path) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.float32]]:
    """Of stored predictions the rows with a label, their labels (N,) and their probabilities (N, K)."""
    table = pa.concat_tables(list(predictions.read_tables(folder)))
    labels, offsets = ragged_column(table, "labels")
    table = table.take(np.flatnonzero(np.diff(offsets)))  # what has no label has no score
    return table, labels.astype(np.int64), tensor_column(table, "scores")


def metrics_of(scores: NDArray[Any], labels: NDArray[np.int64]) -> ClassificationMetrics:
    """The metrics of rows with probabilities (N, K) and labels (N,)."""
    metrics = ClassificationMetrics(scores.shape[1])
    metrics.update(scores, labels)
    return metrics


def commonest_class(info: DatasetInfo, labels: NDArray[np.int64]) -> ClassificationMetrics:
    """The metrics of a model that knows how frequent the classes are in training, and nothing else."""
    counts = np.asarray(info.split("train").label_counts, np.float64)
    return metrics_of(np.tile(counts / counts.sum(), (len(labels), 1)), labels)


def of_each_class(info: DatasetInfo, metrics: ClassificationMetrics) -> list[dict[str, Any]]:
    """The table `per_class`."""
    counts = info.split("train").label_counts or [0] * len(info.class_names)
    return [
        {"class": c, "name": name, "train_count": counts[c], **found}
        for c, (name, found) in enumerate(zip(info.class_names, metrics.per_class(), strict=True))
    ]


def intervals(
    predicted: Sequence[int] | NDArray[Any],
    labels: Sequence[int] | NDArray[Any],
    groups: Sequence[str] | NDArray[Any],
    num_classes: int,
    names: Mapping[str, str],
) -> dict[str, list[float]]:
    """95 % intervals by the bootstrap over groups; `names` maps each name to the metric that it stands for."""
    return {name: bootstrap_interval(predicted, labels, groups, metric, num_classes) for name, metric in names.items()}


def class_tables(files: list[Path], out: Path, kind: str) -> list[Path]:
    """Where the table of each file goes: `out` itself (`.csv`) for one file, `<out>/<stem>.classes.csv` for several.

    ValueError where two would be the same; `kind` is what the files are, as errors call it.
    """
    if out.suffix.lower() == ".csv":
        if len(files) > 1:
            raise ValueError(f"{out} is one table, but there are {len(files)} {kind} files; give a folder instead")
        return [out]
    tables = [out / f"{file.stem}.classes.csv" for file in files]
    if twice := [table for table, times in Counter(tables).items() if times > 1]:
        raise ValueError(f"two {kind} files would be written to {twice[0]}; rename one, or predict them one by one")
    return tables


def write_class_table(table: Path, file: Path, names: Sequence[str], probabilities: NDArray[Any]) -> str:
    """Write a file's table, of one row: its name, the class predicted, and the probability of each; return a line."""
    best = int(probabilities.argmax())
    with written_whole(table) as aside, aside.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["file", "predicted", *names])
        writer.writerow([file.name, names[best], *(f"{p:.6f}" for p in probabilities)])
    return f"{table}: {names[best]} ({probabilities[best]:.0%})"
