"""Stored scores of classes: every score of a row, or its best k; their metrics, and the YouTube-8M challenge's file.

Columns of the predictions (`mmray.predictions`): `id`; `labels` where they are known; and either the best `top_k`
classes (`top_classes` int32 (k,) and `top_scores` float32 (k,), best first) or every score (`scores` float32, one frame
of C numbers a row: stored as bytes, which are read twenty times as fast as Parquet's lists).
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmray.files import written_whole
from mmray.metrics.ranking import RankingMetrics, label_prior_scores
from mmray.metrics.top_k import top_k
from mmray.predictions import read_info, read_tables
from mmray.prepared import frames_column, ragged_column, tensor_column
from mmray.schema import Column, SplitInfo, arrow_schema


def columns_of(num_classes: int, k: int | None, labelled: bool) -> list[Column]:
    """The columns of stored predictions; `k` None keeps every score."""
    columns = [Column(name="id", dtype="string")]
    if labelled:
        columns.append(Column(name="labels", dtype="int32", shape=(None,), unit="class"))
    if k is None:
        return [*columns, Column(name="scores", dtype="float32", shape=(None, num_classes), unit="probability")]
    return [
        *columns,
        Column(name="top_classes", dtype="int32", shape=(k,), unit="class"),
        Column(name="top_scores", dtype="float32", shape=(k,), unit="probability"),
    ]


def to_table(ids: pa.Array, labels: pa.Array | None, scores: np.ndarray, k: int | None) -> pa.Table:
    """Scores (B, C) float32 of rows as a table of `columns_of`."""
    columns = columns_of(scores.shape[1], k, labels is not None)
    arrays = {"id": ids, "labels": labels, **to_arrays(scores, columns)}
    schema = arrow_schema(columns)
    return pa.table([arrays[f.name].cast(f.type) for f in schema], schema=schema)


def to_arrays(scores: np.ndarray, columns: list[Column]) -> dict[str, pa.Array]:
    """Scores (B, C) float32 as those of the columns that hold scores: every score, or the best."""
    by_name = {column.name: column for column in columns}
    if "scores" not in by_name:
        best = top_k(scores, by_name["top_classes"].shape[0] or 0)
        tensors = map(pa.FixedShapeTensorArray.from_numpy_ndarray, best)
        return dict(zip(("top_classes", "top_scores"), tensors, strict=True))
    plain = np.ascontiguousarray(scores, np.float32)
    if None not in by_name["scores"].shape:
        return {"scores": pa.FixedShapeTensorArray.from_numpy_ndarray(plain)}
    offsets = np.arange(len(plain) + 1, dtype=np.int64) * (plain.shape[1] * plain.itemsize)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(plain)]
    return {"scores": pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(plain), buffers)}


def dense_scores(table: pa.Table, column: Column) -> np.ndarray:
    """Every score of the rows of a table, (B, C), as `column` stores them; without a copy where that is one chunk."""
    return frames_column(table, column)[0] if None in column.shape else tensor_column(table, "scores")


def ranking_metrics(folder: Path, num_classes: int, k: int = 20) -> RankingMetrics:
    """Metrics over the top k of stored predictions; ValueError where they are not labelled, or fewer were stored."""
    info = read_info(folder)
    info.require_labels(folder)
    stored = next((c.shape[0] for c in info.columns if c.name == "top_classes"), None)
    dense = next((c for c in info.columns if c.name == "scores"), None)
    if stored is not None and stored < min(k, num_classes):
        raise ValueError(f"{folder} holds the best {stored} classes a row, metrics need {k}; raise predict.top_k")
    metrics = RankingMetrics(num_classes, k)
    for table in read_tables(folder):
        labels = ragged_column(table, "labels")
        if dense is not None:
            metrics.update(dense_scores(table, dense), labels)
        else:
            classes, scores = tensor_column(table, "top_classes"), tensor_column(table, "top_scores")
            metrics.update_top_k(classes, scores, labels)
    return metrics


def prior_metrics(folder: Path, train: SplitInfo, num_classes: int, k: int = 20) -> RankingMetrics:
    """Metrics of the label prior: for every row, each class's frequency in the training split."""
    prior = label_prior_scores(train.label_counts or [0] * num_classes, train.rows)
    metrics = RankingMetrics(num_classes, k)
    classes, scores = top_k(prior[None], num_classes)
    for table in read_tables(folder):
        labels, offsets = ragged_column(table, "labels")
        width = max(metrics.k, int(np.diff(offsets).max(initial=0)))  # PERR needs as many as a row has labels
        shape = (table.num_rows, width)
        best = np.broadcast_to(classes[:, :width], shape), np.broadcast_to(scores[:, :width], shape)
        metrics.update_top_k(*best, (labels, offsets))
    return metrics


def write_challenge_csv(folder: Path, path: Path, k: int = 20) -> int:
    """Write the YouTube-8M challenge's file, `VideoId,LabelConfidencePairs` with the best k a row; return the rows."""
    by_name = {column.name: column for column in read_info(folder).columns}
    if not by_name.keys() & {"scores", "top_classes"}:
        raise ValueError(f"{folder} holds no scores of classes, and the challenge's file has nothing else")
    rows = 0
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["VideoId", "LabelConfidencePairs"])
        for table in read_tables(folder):
            if "scores" in by_name:
                classes, scores = top_k(dense_scores(table, by_name["scores"]), k)
            else:
                classes = tensor_column(table, "top_classes")[:, :k]
                scores = tensor_column(table, "top_scores")[:, :k]
            for name, row_classes, row_scores in zip(table.column("id").to_pylist(), classes, scores, strict=True):
                writer.writerow([name, " ".join(f"{c} {s:.6f}" for c, s in zip(row_classes, row_scores, strict=True))])
                rows += 1
    return rows
