"""From stored predictions to `evaluation/<name>.json`: what the task scores, and rows that are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray import config, predictions, prepared
from mmray.files import write_json, written_whole
from mmray.tasks import Task, build
from mmray.training.run_folder import read_info, read_run


def evaluate(run_dir: Path, name: str, data: Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Score the predictions `predictions/<name>` of a run and write `evaluation/<name>.json`; return its content.

    `data` is the prepared dataset that was predicted: where it is given, the rows that the task calls worth a look are
    kept beside the scores, as `evaluation/<name>.examples.parquet`, for a report. `overrides` are those of the
    prediction. ValueError where there are no predictions, or they have no labels.
    """
    folder = run_dir / "predictions" / name
    stored = predictions.read_info(folder)
    stored.require_labels(folder)
    run = config.with_overrides(read_run(run_dir), overrides, ("task", "predict"))
    task = build(run, read_info(run_dir))
    result = {
        "split": stored.split,
        "checkpoint": f"checkpoints/step-{stored.step:08d}",
        "rows": stored.rows,
        **task.score(folder),
    }
    out = run_dir / "evaluation" / f"{name}.json"
    write_json(out, result)
    if data is not None:
        _write_examples(task, result, folder, data, out.with_suffix(".examples.parquet"))
    return result


def _write_examples(task: Task, result: dict[str, Any], folder: Path, data: Path, out: Path) -> None:
    """The chosen rows, whole: what was predicted for them, and what the task wants shown of the prepared dataset."""
    chosen, columns, facts = task.examples(result)
    if not chosen:
        return
    stored = predictions.read_info(folder)
    reader = prepared.SplitReader(data, prepared.read_info(data).split(stored.split), columns)
    tables = list(predictions.read_tables(folder, leave_out=("posteriors",)))
    ids = np.concatenate([table.column("id").to_numpy(zero_copy_only=False) for table in tables])
    place = {str(name): row for row, name in enumerate(ids)}
    rows = np.array([place[name] for name in chosen])
    table = pa.concat_tables(tables).take(rows)
    for name, column in zip(columns, reader.take(rows).columns, strict=True):
        table = table.append_column(name, column)
    with written_whole(out) as aside:
        pq.write_table(table.replace_schema_metadata({f"mmray.{key}": value for key, value in facts.items()}), aside)
