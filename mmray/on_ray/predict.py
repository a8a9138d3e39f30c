"""`mmray predict`: a split, or new files, through a trained model, in as many processes as there are CPUs or GPUs."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from mmray import config, predictions, prepared
from mmray.console import progress, say
from mmray.files import delete_leftovers, locked, publish_folder, write_json
from mmray.on_ray import runtime
from mmray.on_ray.prepare import prepare, prepare_for
from mmray.predictions import PredictionsInfo, columns_of, to_table
from mmray.prepared import SplitReader
from mmray.schema import arrow_schema
from mmray.tasks import Task, build, monitored
from mmray.training import checkpoint, run_folder

_PART_ROWS = 32768  # rows of one task and one Parquet file


def predict(run_dir: Path, split: str = "test", source: str | None = None, verbose: bool = False) -> Path:
    """Predict every row of `split`, or of the corpus at `source`, with the best checkpoint; return the folder.

    Predictions made by the same checkpoint are kept as they are. ValueError where the split or checkpoint is missing.
    """
    run = run_folder.read_run(run_dir)
    trained_on = run_folder.read_info(run_dir)
    task = build(run, trained_on)
    best = checkpoint.best(run_dir, *monitored(run, task))
    if source is None:
        folder = prepare_for(run, run_dir, verbose)
    else:
        run, split = _over_new_files(run, source), "all"
        folder = prepare(run, verbose)
    info = prepared.read_info(folder)
    result = PredictionsInfo(
        run=run.name,
        dataset=info.id,
        split=split,
        step=best.step,
        rows=info.split(split).rows,
        labelled=info.split(split).max_labels > 0,
        # PERR needs as many classes as a row has labels.
        top_k=run.predict.top_k and min(max(run.predict.top_k, info.split(split).max_labels), len(info.class_names)),
        num_classes=len(info.class_names),
    )
    out = run_dir / "predictions" / (split if source is None else info.id)
    if (out / "predictions.json").exists() and predictions.read_info(out) == result:
        say(f"predictions {out} are there: {result.rows:,} rows")
        return out
    runtime.start(verbose)
    out.parent.mkdir(exist_ok=True)
    with locked(out.parent / ".lock", f"predicting with {run_dir}", wait=True):
        delete_leftovers(out.parent)
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=".writing-"))
        aside.chmod(0o755)
        done = _write_parts(run, run_dir, folder, result, aside)
        if done != result.rows:
            raise RuntimeError(f"predicted {done:,} of {result.rows:,} rows: this must not happen, please report it")
        write_json(aside / "predictions.json", result.model_dump(mode="json"))
        publish_folder(aside, out)
    say(f"predicted {done:,} rows into {out}")
    return out


def _over_new_files(run: config.Run, source: str) -> config.Run:
    values = run.to_dict()
    values["dataset"]["path"] = source
    values["prepare"]["split"] = {"by": "none"}
    return config.from_dict(values)


def _write_parts(run: config.Run, run_dir: Path, folder: Path, result: PredictionsInfo, aside: Path) -> int:
    starts = range(0, result.rows, _PART_ROWS)
    gpus = runtime.cluster_gpus() if run.resources.use_gpu else 0
    workers = min(len(starts), max(1, int(gpus or runtime.cluster_cpus() - 1)))
    ray_data = runtime.ray_data()
    data = ray_data.from_items([{"start": start} for start in starts], override_num_blocks=len(starts)).map(
        _Predictor,
        fn_constructor_args=(
            run.to_dict(),
            str(run_dir.absolute()),
            str(folder.absolute()),
            result,
            str(aside.absolute()),
        ),
        compute=ray_data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    done = 0
    with progress("predict", result.rows, "rows") as advance, runtime.without_core_remarks():
        for row in data.iter_rows():
            if row["bad"]:
                raise ValueError(row["bad"])
            done += row["rows"]
            advance(done, f"{run.name} at step {result.step}")
    return done


class _Predictor:
    """Holds the model; one call predicts one range of rows and writes its file."""

    def __init__(self, run: dict[str, Any], run_dir: str, folder: str, result: PredictionsInfo, aside: str) -> None:
        self._run, self._run_dir, self._folder = config.from_dict(run), Path(run_dir), Path(folder)
        self._result, self._aside = result, Path(aside)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        start = int(row["start"])
        stop = min(start + _PART_ROWS, self._result.rows)
        try:
            self._write(start, stop)
        except (ValueError, OSError) as error:  # an answer, not a failure of the task: no retry, no stack trace
            return {"rows": 0, "bad": str(error)}
        return {"rows": stop - start, "bad": ""}

    @functools.cached_property
    def _loaded(self) -> tuple[Task, torch.nn.Module, torch.device]:
        task = build(self._run, run_folder.read_info(self._run_dir))
        device = torch.device("cuda" if self._run.resources.use_gpu and torch.cuda.is_available() else "cpu")
        model = task.build_model()
        checkpoint.load_model(checkpoint.folder_of(self._run_dir, self._result.step), model)
        return task, model.to(device).eval(), device

    def _write(self, start: int, stop: int) -> None:
        task, model, device = self._loaded
        labels = ("labels",) if self._result.labelled else ()
        split = prepared.read_info(self._folder).split(self._result.split)
        reader = SplitReader(self._folder, split, ("id", *labels, *task.columns(labelled=False)))
        schema = arrow_schema(columns_of(self._result.num_classes, self._result.top_k, self._result.labelled))
        path = self._aside / f"part-{start // _PART_ROWS:05d}.parquet"
        with torch.inference_mode(), pq.ParquetWriter(path, schema) as writer:
            for table in reader.batches(start, stop, self._run.predict.batch_size):
                scores, _ = task.evaluate(model, task.collate(table).to(device))
                known = table.column("labels").combine_chunks() if labels else None
                ids = table.column("id").combine_chunks()
                writer.write_table(to_table(ids, known, scores.cpu().numpy(), self._result.top_k))
