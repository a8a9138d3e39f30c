"""Stored predictions: Parquet, one row a video, matched by id.

    runs/<name>/predictions/test/
        predictions.json       split, checkpoint, rows, columns, k
        part-00000.parquet ...

Columns: `id`; `labels` where they are known; and either the best `top_k` classes (`top_classes` int32 (k,) and
`top_scores` float32 (k,), best first) or every score (`scores` float32 (C,)).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from mmray.files import written_whole
from mmray.metrics.ranking import RankingMetrics
from mmray.metrics.top_k import top_k
from mmray.prepared import ragged_column, tensor_column
from mmray.schema import Column, arrow_schema


class PredictionsInfo(BaseModel):
    """`predictions.json`."""

    model_config = ConfigDict(extra="forbid")

    run: str
    dataset: str
    split: str
    step: int
    rows: int
    labelled: bool
    top_k: int | None
    num_classes: int


def columns_of(num_classes: int, k: int | None, labelled: bool) -> list[Column]:
    """The columns of stored predictions; `k` None keeps every score."""
    columns = [Column(name="id", dtype="string")]
    if labelled:
        columns.append(Column(name="labels", dtype="int32", shape=(None,), unit="class"))
    if k is None:
        return [*columns, Column(name="scores", dtype="float32", shape=(num_classes,), unit="probability")]
    return [
        *columns,
        Column(name="top_classes", dtype="int32", shape=(k,), unit="class"),
        Column(name="top_scores", dtype="float32", shape=(k,), unit="probability"),
    ]


def to_table(ids: pa.Array, labels: pa.Array | None, scores: np.ndarray, k: int | None) -> pa.Table:
    """Scores (B, C) float32 of rows as a table of `columns_of`."""
    arrays: list[pa.Array] = [ids] if labels is None else [ids, labels]
    if k is None:
        arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(scores)))
    else:
        arrays += [pa.FixedShapeTensorArray.from_numpy_ndarray(part) for part in top_k(scores, k)]
    schema = arrow_schema(columns_of(scores.shape[1], k, labels is not None))
    return pa.table([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)


def read_info(folder: Path) -> PredictionsInfo:
    """Read `predictions.json`; ValueError where there is none."""
    path = folder / "predictions.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no predictions; make them with mmray predict")
    return PredictionsInfo.model_validate(json.loads(path.read_text()))


def read_batches(folder: Path, batch_rows: int = 8192) -> Iterator[pa.Table]:
    """The predictions, a bounded number of rows at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_rows):
            yield pa.Table.from_batches([batch])


def ranking_metrics(folder: Path, k: int = 20) -> RankingMetrics:
    """Metrics over the top k of stored predictions; ValueError where they are not labelled, or fewer were stored."""
    info = read_info(folder)
    if not info.labelled:
        raise ValueError(f"{folder} has predictions without labels: there is nothing to compare them with")
    if info.top_k is not None and info.top_k < min(k, info.num_classes):
        raise ValueError(f"{folder} holds the best {info.top_k} classes a row, metrics need {k}; raise predict.top_k")
    metrics = RankingMetrics(info.num_classes, k)
    for table in read_batches(folder):
        labels = ragged_column(table, "labels")
        if info.top_k is None:
            metrics.update(tensor_column(table, "scores"), labels)
        else:
            classes, scores = tensor_column(table, "top_classes"), tensor_column(table, "top_scores")
            metrics.update_top_k(classes, scores, labels)
    _require_rows(folder, info, metrics.num_videos)
    return metrics


def write_challenge_csv(folder: Path, path: Path, k: int = 20) -> int:
    """Write the YouTube-8M challenge's file, `VideoId,LabelConfidencePairs` with the best k a row; return the rows."""
    rows = 0
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["VideoId", "LabelConfidencePairs"])
        for table in read_batches(folder):
            if "scores" in table.column_names:
                classes, scores = top_k(tensor_column(table, "scores"), k)
            else:
                classes = tensor_column(table, "top_classes")[:, :k]
                scores = tensor_column(table, "top_scores")[:, :k]
            for name, row_classes, row_scores in zip(table.column("id").to_pylist(), classes, scores, strict=True):
                writer.writerow([name, " ".join(f"{c} {s:.6f}" for c, s in zip(row_classes, row_scores, strict=True))])
                rows += 1
        _require_rows(folder, read_info(folder), rows)
    return rows


def _require_rows(folder: Path, info: PredictionsInfo, rows: int) -> None:
    if rows != info.rows:
        raise ValueError(f"{folder} should hold {info.rows:,} rows and holds {rows:,}; predict again")
