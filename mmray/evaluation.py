"""From stored predictions to `evaluation/<name>.json`: what the task scores, and rows that are worth a look."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray import config, predictions, prepared
from mmray.files import write_json, written_whole
from mmray.tasks import Task, build
from mmray.training import trained
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
        "checkpoint": _made_by(run, stored),
        "rows": stored.rows,
        **task.score(folder),
    }
    out = run_dir / "evaluation" / f"{name}.json"
    write_json(out, result)
    if data is not None:
        explain = (
            functools.partial(_explain, run, run_dir, stored.step)
            if hasattr(task, "heat") and not _is_combined(run)
            else None
        )
        _write_examples(task, result, folder, data, out.with_suffix(".examples.parquet"), explain)
    return result


def _explain(run: config.Run, run_dir: Path, step: int, rows: pa.Table) -> tuple[np.ndarray, str] | None:
    """What the task's `heat` says of the model that predicted."""
    task, model = trained.load(run, run_dir, step)
    found: tuple[np.ndarray, str] | None = task.heat(model, rows)  # type: ignore[attr-defined]
    return found


def _is_combined(run: config.Run) -> bool:
    """Whether what was predicted comes from the predictions of other runs, not from a model."""
    return run.ensemble is not None and run.ensemble.method != "soup"


def _made_by(run: config.Run, stored: predictions.PredictionsInfo) -> str:
    """The checkpoint that predicted, or what was done with the predictions of others."""
    if run.ensemble is None or not _is_combined(run):
        return f"checkpoints/step-{stored.step:08d}"
    return f"{run.ensemble.method} of {len(run.ensemble.members)} runs"


def _write_examples(
    task: Task,
    result: dict[str, Any],
    folder: Path,
    data: Path,
    out: Path,
    explain: Callable[[pa.Table], tuple[np.ndarray, str] | None] | None,
) -> None:
    """The chosen rows, whole: what was predicted for them, what the task wants shown of the prepared dataset, and heat.

    `explain` gives, for rows, the column `heat` and how it was found, or None.
    """
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
    if explain is not None and (found := explain(table)) is not None:
        table = table.append_column("heat", pa.FixedShapeTensorArray.from_numpy_ndarray(found[0]))
        facts = {**facts, "heat": found[1]}
    with written_whole(out) as aside:
        pq.write_table(table.replace_schema_metadata({f"mmray.{key}": value for key, value in facts.items()}), aside)
