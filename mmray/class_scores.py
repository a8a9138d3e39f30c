"""Stored scores of classes: every score of a row, or its best k; their metrics, and the YouTube-8M challenge's file.

Columns of the predictions (`mmray.predictions`): `id`; `labels` where they are known; and either the best `top_k`
classes (`top_classes` int32 (k,) and `top_scores` float32 (k,), best first) or every score (`scores` float32 (C,)).
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
from mmray.prepared import ragged_column, tensor_column
from mmray.schema import Column, SplitInfo, arrow_schema


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


def ranking_metrics(folder: Path, num_classes: int, k: int = 20) -> RankingMetrics:
    """Metrics over the top k of stored predictions; ValueError where they are not labelled, or fewer were stored."""
    info = read_info(folder)
    info.require_labels(folder)
    stored = next((c.shape[0] for c in info.columns if c.name == "top_classes"), None)
    if stored is not None and stored < min(k, num_classes):
        raise ValueError(f"{folder} holds the best {stored} classes a row, metrics need {k}; raise predict.top_k")
    metrics = RankingMetrics(num_classes, k)
    for table in read_tables(folder):
        labels = ragged_column(table, "labels")
        if stored is None:
            metrics.update(tensor_column(table, "scores"), labels)
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
    if not {column.name for column in read_info(folder).columns} & {"scores", "top_classes"}:
        raise ValueError(f"{folder} holds no scores of classes, and the challenge's file has nothing else")
    rows = 0
    with written_whole(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["VideoId", "LabelConfidencePairs"])
        for table in read_tables(folder):
            if "scores" in table.column_names:
                classes, scores = top_k(tensor_column(table, "scores"), k)
            else:
                classes = tensor_column(table, "top_classes")[:, :k]
                scores = tensor_column(table, "top_scores")[:, :k]
            for name, row_classes, row_scores in zip(table.column("id").to_pylist(), classes, scores, strict=True):
                writer.writerow([name, " ".join(f"{c} {s:.6f}" for c, s in zip(row_classes, row_scores, strict=True))])
                rows += 1
    return rows
