"""Multi-label classification of videos from per-video vectors or per-second frames (YouTube-8M).

A batch has, for each input of the model, either `<name>` (B, D) float, or for frame-level data `<name>` (frames, D)
uint8 with `<name>.offsets` (B + 1,); and, where rows are labelled, `labels` with `labels.offsets` (B + 1,).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

import pyarrow as pa
import torch
from pydantic import Field, PositiveInt
from torch import nn

from mmray import class_scores, config, lookup, losses
from mmray.config import Section
from mmray.features.quantization import mean_of_frames
from mmray.metrics.ranking import RankingMetrics
from mmray.prepared import frames_column, ragged_column, tensor_column
from mmray.schema import Column, DatasetInfo, SplitInfo, is_feature
from mmray.tasks import Batch, require_model


class Config(Section):
    """Settings of the task."""

    name: Literal["video_classification"] = "video_classification"
    top_k: PositiveInt = Field(20, description="classes a video that count for the metrics")


class VectorModel(Protocol):
    """What this task needs of a model's config."""

    inputs: list[str] | None

    def build(self, input_size: int, num_classes: int) -> nn.Module:
        """A module from vectors (B, input_size) to logits (B, num_classes)."""


class Task:
    """Videos in, a score in [0, 1] a class out; trained by binary cross-entropy over all classes."""

    monitor: ClassVar[str] = "val/gap"
    maximise: ClassVar[bool] = True
    all_labelled: ClassVar[bool] = False  # a video may have none of the classes

    def __init__(self, run: config.Run, info: DatasetInfo) -> None:
        require_model(run, takes="vectors")
        self.info = info
        self.num_classes = len(info.class_names)
        self._model_config = cast(VectorModel, run.model)
        self._top_k = cast(Config, run.task).top_k
        self._stored_k = run.predict.top_k
        by_name = {c.name: c for c in info.columns if is_feature(c)}
        wanted = list(by_name) if self._model_config.inputs is None else self._model_config.inputs
        if not wanted:
            raise ValueError(f"model.inputs is empty; choose from {sorted(by_name)}, or leave it out to take all")
        for name in wanted:
            if name not in by_name:
                raise ValueError(f"model.inputs: {name!r} is not a feature; {lookup.suggest(name, sorted(by_name))}")
        self.inputs: list[Column] = [by_name[name] for name in wanted]

    def columns(self, labelled: bool) -> tuple[str, ...]:
        """Columns read for a batch."""
        return (*(c.name for c in self.inputs), *(["labels"] if labelled else []))

    def build_model(self) -> nn.Module:
        """The run's model over the concatenated inputs."""
        size = sum(cast(int, c.shape[-1]) for c in self.inputs)
        return self._model_config.build(size, self.num_classes)

    def describe(self, model: nn.Module) -> dict[str, Any]:
        """Nothing more."""
        return {}

    def augmented(self, table: pa.Table, epoch: int) -> pa.Table:
        """The rows as they are."""
        return table

    def collate(self, table: pa.Table) -> Batch:
        """Rows to tensors. Vectors keep their type and frames stay uint8: both are widened on the device."""
        tensors: dict[str, torch.Tensor] = {}
        for column in self.inputs:
            if column.shape[0] is None:
                frames, offsets = frames_column(table, column)
                tensors[column.name] = torch.tensor(frames)
                tensors[f"{column.name}.offsets"] = torch.from_numpy(offsets)
            else:
                tensors[column.name] = torch.tensor(tensor_column(table, column.name))
        if "labels" in table.column_names:
            values, offsets = ragged_column(table, "labels")
            tensors["labels"] = torch.tensor(values)
            tensors["labels.offsets"] = torch.from_numpy(offsets)
        return Batch(table.num_rows, tensors)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Binary cross-entropy summed over classes, mean over rows, by the model's fused loss where it has one."""
        return losses.multilabel_loss(model, self._vectors(batch), self._multi_hot(batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, float]:
        """Probabilities (B, C) float32, and the loss summed over rows; 0 for rows without labels."""
        logits = model(self._vectors(batch)).float()
        loss = 0.0
        if "labels" in batch.tensors:
            loss = float(losses.binary_cross_entropy(logits, self._multi_hot(batch)).detach()) * batch.num_rows
        return logits.sigmoid(), loss

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
        """GAP, mAP, Hit@1 and PERR; those of the label prior; and every class with its average precision."""
        train = self.info.split("train")
        metrics = class_scores.ranking_metrics(folder, self.num_classes, self._top_k)
        prior = class_scores.prior_metrics(folder, train, self.num_classes, self._top_k)
        return {
            "metrics": metrics.compute(),
            "baselines": {"prior": prior.compute()},
            "per_class": _per_class(metrics, self.info),
        }

    def examples(self, scored: dict[str, Any]) -> tuple[list[str], tuple[str, ...], dict[str, str]]:
        """None: a video is not here to be looked at."""
        return [], (), {}

    def _vectors(self, batch: Batch) -> torch.Tensor:
        parts = []
        for column in self.inputs:
            tensor = batch.tensors[column.name]
            offsets = batch.tensors.get(f"{column.name}.offsets")
            parts.append(tensor.float() if offsets is None else mean_of_frames(tensor, offsets))
        return torch.cat(parts, dim=1)

    def _multi_hot(self, batch: Batch) -> torch.Tensor:
        values, offsets = batch.tensors["labels"], batch.tensors["labels.offsets"]
        rows = torch.arange(batch.num_rows, device=values.device).repeat_interleave(offsets.diff())
        labels = torch.zeros(batch.num_rows, self.num_classes, dtype=torch.bool, device=values.device)
        labels[rows, values.long()] = True
        return labels


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
