"""Multi-label classification of videos from vectors, per-second frames or words (YouTube-8M), or of anything else.

A batch has, for each input of the model, either `<name>` (B, D), or for frame-level data `<name>` (frames, D) uint8
with `<name>.offsets` (B + 1,), or for words `words` with `words.offsets`; and, where rows are labelled, `labels` with
`labels.offsets` (B + 1,). See `mmray.tasks._video_inputs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa
import torch
from pydantic import Field, PositiveInt
from torch import nn

from mmray import class_scores, config, lookup, losses
from mmray.config import Fraction, Section
from mmray.metrics.ranking import RankingMetrics
from mmray.prepared import Int64s, SplitReader, ragged_column
from mmray.schema import Column, DatasetInfo, SplitInfo
from mmray.storage import at
from mmray.tasks import Batch, require_model
from mmray.tasks._common_words import common_words
from mmray.tasks._video_inputs import Frames, inputs_of


class Config(Section):
    """Settings of the task."""

    name: Literal["video_classification"] = "video_classification"
    top_k: PositiveInt = Field(20, description="classes a video that count for the metrics")
    modality_dropout: dict[str, Fraction] = Field(
        {}, description="input: the probability with which a row is trained without it, anew at every step"
    )


class Task:
    """Videos in, a score in [0, 1] a class out; trained by binary cross-entropy over all classes."""

    monitor: ClassVar[str] = "val/gap"
    maximise: ClassVar[bool] = True
    all_labelled: ClassVar[bool] = False  # a video may have none of the classes

    def __init__(self, run: config.Run, info: DatasetInfo) -> None:
        require_model(run, takes=("vectors", "frames", "words"))
        self.info = info
        self.num_classes = len(info.class_names)
        self._dataset = run.dataset
        self.inputs = inputs_of(run, info)
        self._dropout = _modality_dropout(run, self.inputs.columns)
        self._top_k = cast(Config, run.task).top_k
        self._stored_k = run.predict.top_k
        self._folder = at(run.prepare.out) / info.id
        self._batch_size = run.predict.batch_size

    def columns(self, labelled: bool) -> tuple[str, ...]:
        """Columns read for a batch."""
        return (*self.inputs.columns, *(["labels"] if labelled else []))

    def build_model(self) -> nn.Module:
        """The run's model over its inputs."""
        return self.inputs.build()

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def augmented(self, table: pa.Table, epoch: int) -> pa.Table:
        """The rows as they are."""
        return table

    def lengths(self, table: pa.Table) -> Int64s | None:
        """How long each row is, where it pays to compute rows of like length together: see `mmray.training.feed`."""
        return self.inputs.lengths(table) if isinstance(self.inputs, Frames) else None

    def collate(self, table: pa.Table) -> Batch:
        """Rows to tensors."""
        tensors = self.inputs.collate(table)
        if "labels" in table.column_names:
            values, offsets = ragged_column(table, "labels")
            tensors["labels"] = torch.tensor(values)
            tensors["labels.offsets"] = torch.from_numpy(offsets)
        return Batch(table.num_rows, tensors)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Binary cross-entropy summed over classes, mean over rows, by the model's fused loss where it has one.

        A model that is fitted instead of trained is fitted first, by all training rows, in every process alike.
        """
        if not getattr(model, "is_fitted", True):
            with torch.no_grad():
                model.fit(self._training_rows(batch.tensors["labels"].device))  # type: ignore[operator]
        return losses.multilabel_loss(model, self._multi_hot(batch), *self.inputs.tensors(batch, self._dropout))

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, float]:
        """Probabilities (B, C) float32, and the loss summed over rows; 0 for rows without labels."""
        logits = model(*self.inputs.tensors(batch, {})).float()
        loss = 0.0
        if "labels" in batch.tensors:
            loss = float(losses.binary_cross_entropy(logits, self._multi_hot(batch)).detach()) * batch.num_rows
        return logits.sigmoid(), loss

    def filled(self, batch: Batch) -> torch.Tensor:
        """Rows that the model has anything to look at of, (B,) bool: a video without a title has no words."""
        return self.inputs.filled(batch)

    def new_metrics(self) -> VideoMetrics:
        """GAP, mAP, Hit@1 and PERR."""
        return VideoMetrics(self.num_classes, self._top_k)

    def prediction_columns(self, split: SplitInfo) -> list[Column]:
        """The best `predict.top_k` classes of a row, or every score."""
        # PERR needs as many classes as a row has labels.
        k = self._stored_k and min(max(self._stored_k, split.max_labels), self.num_classes)
        return class_scores.columns_of(self.num_classes, k, labelled=split.labelled_rows > 0)

    def predictions(self, columns: list[Column], rows: pa.Table, scores: torch.Tensor) -> pa.Table:
        """Ids, labels where they are known, and the best or all of the probabilities (B, C)."""
        k = next((c.shape[0] for c in columns if c.name == "top_classes"), None)
        labels = rows.column("labels").combine_chunks() if any(c.name == "labels" for c in columns) else None
        return class_scores.to_table(rows.column("id").combine_chunks(), labels, scores.numpy(), k)

    def score(self, folder: Path) -> dict[str, Any]:
        """GAP, mAP, Hit@1 and PERR; those of the label prior; every class with its average precision; common words."""
        train = self.info.split("train")
        metrics = class_scores.ranking_metrics(folder, self.num_classes, self._top_k)
        prior = class_scores.prior_metrics(folder, train, self.num_classes, self._top_k)
        text = getattr(self._dataset, "text", None)
        words = common_words(self._folder, self.info, text.open_vectors()) if text is not None else {}
        return {
            "metrics": metrics.compute(),
            "baselines": {"prior": prior.compute()},
            "per_class": _per_class(metrics, self.info),
            **({"common_words": words} if words else {}),
        }

    def examples(self, scored: dict[str, Any]) -> tuple[list[str], tuple[str, ...], dict[str, str]]:
        """None: a video is not here to be looked at."""
        return [], (), {}

    def _training_rows(self, device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
        """Inputs and labels (B, C) of all training rows, a batch at a time."""
        split = self.info.split("train")
        reader = SplitReader(self._folder, split, self.columns(labelled=True))
        for table in reader.batches(0, split.rows, self._batch_size):
            batch = self.collate(table).to(device)
            yield *self.inputs.tensors(batch, {}), self._multi_hot(batch)

    def _multi_hot(self, batch: Batch) -> torch.Tensor:
        values, offsets = batch.tensors["labels"], batch.tensors["labels.offsets"]
        rows = torch.arange(batch.num_rows, device=values.device).repeat_interleave(offsets.diff())
        labels = torch.zeros(batch.num_rows, self.num_classes, dtype=torch.bool, device=values.device)
        labels[rows, values.long()] = True
        return labels


def _modality_dropout(run: config.Run, inputs: tuple[str, ...]) -> dict[str, float]:
    """`task.modality_dropout`; ValueError where it names what is no input, or the model reads words."""
    dropout = dict(cast(Config, run.task).modality_dropout)
    for name in dropout:
        if run.model.takes == "words":  # type: ignore[attr-defined]
            raise ValueError("task.modality_dropout is for models of vectors and frames; this one reads words alone")
        if name not in inputs or name.startswith("has_"):
            choices = [name for name in inputs if not name.startswith("has_")]
            raise ValueError(f"task.modality_dropout: {name!r} is no input; {lookup.suggest(name, choices)}")
    return dropout


class VideoMetrics:
    """`RankingMetrics` over batches."""

    def __init__(self, num_classes: int, top_k: int) -> None:
        self.ranking = RankingMetrics(num_classes, top_k)

    def update(self, scores: torch.Tensor, batch: Batch) -> None:
        """Take in scores (B, C) and the labels of the batch."""
        labels, offsets = batch.tensors["labels"], batch.tensors["labels.offsets"]
        self.ranking.update(scores, (labels.numpy(), offsets.numpy()))

    def state(self) -> dict[str, Any]:
        """All that was taken in, as arrays."""
        return self.ranking.state()

    def merge(self, state: dict[str, Any]) -> None:
        """Take in another process's `state()`."""
        self.ranking.merge(RankingMetrics.from_state(state))

    def compute(self) -> dict[str, float]:
        """The metrics by name."""
        return self.ranking.compute()


def _per_class(metrics: RankingMetrics, info: DatasetInfo) -> list[dict[str, Any]]:
    train_counts = info.split("train").label_counts or [0] * len(info.class_names)
    rows = zip(info.class_names, train_counts, metrics.label_counts.tolist(), metrics.per_class_ap(), strict=True)
    return [
        {"class": c, "name": name, "train_count": seen, "count": count, "ap": None if math.isnan(ap) else float(ap)}
        for c, (name, seen, count, ap) in enumerate(rows)
    ]
