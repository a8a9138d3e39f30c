"""From stored predictions to `evaluation/<split>.json`: metrics, baselines and every class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from mmray import predictions
from mmray.files import write_json
from mmray.metrics.ranking import RankingMetrics, label_prior_scores
from mmray.metrics.top_k import top_k
from mmray.prepared import ragged_column
from mmray.schema import DatasetInfo
from mmray.training.run_folder import read_info, read_run


def evaluate(run_dir: Path, split: str) -> dict[str, Any]:
    """Score the predictions of a run for `split` and write `evaluation/<split>.json`; return its content.

    ValueError where there are no predictions, or they have no labels.
    """
    folder = run_dir / "predictions" / split
    stored, info = predictions.read_info(folder), read_info(run_dir)
    k: int = read_run(run_dir).task.top_k  # type: ignore[attr-defined]
    metrics = predictions.ranking_metrics(folder, k)
    result = {
        "split": split,
        "checkpoint": f"checkpoints/step-{stored.step:08d}",
        "rows": metrics.num_videos,
        "metrics": metrics.compute(),
        "baselines": {"prior": prior_metrics(folder, info, k).compute()},
        "per_class": _per_class(metrics, info),
    }
    write_json(run_dir / "evaluation" / f"{split}.json", result)
    return result


def prior_metrics(folder: Path, info: DatasetInfo, k: int = 20) -> RankingMetrics:
    """Metrics of the label prior: for every row, each class's frequency in the training split."""
    train = info.split("train")
    prior = label_prior_scores(train.label_counts or [0] * len(info.class_names), train.rows)
    metrics = RankingMetrics(len(prior), k)
    classes, scores = top_k(prior[None], len(prior))
    for table in predictions.read_batches(folder):
        labels, offsets = ragged_column(table, "labels")
        width = max(metrics.k, int(np.diff(offsets).max(initial=0)))  # PERR needs as many as a row has labels
        shape = (table.num_rows, width)
        best = np.broadcast_to(classes[:, :width], shape), np.broadcast_to(scores[:, :width], shape)
        metrics.update_top_k(*best, (labels, offsets))
    return metrics


def _per_class(metrics: RankingMetrics, info: DatasetInfo) -> list[dict[str, Any]]:
    train_counts = info.split("train").label_counts or [0] * len(info.class_names)
    rows = zip(info.class_names, train_counts, metrics.label_counts.tolist(), metrics.per_class_ap(), strict=True)
    return [
        {"class": c, "name": name, "train_count": seen, "count": count, "ap": None if math.isnan(ap) else float(ap)}
        for c, (name, seen, count, ap) in enumerate(rows)
    ]
