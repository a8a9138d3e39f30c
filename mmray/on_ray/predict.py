"""`mmray predict`: a split, or new files, through a trained model, in as many processes as there are CPUs or GPUs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmray import config, predictions, prepared
from mmray.console import progress, say
from mmray.files import write_json
from mmray.on_ray import runtime
from mmray.on_ray.prepare import prepare
from mmray.predictions import PredictionsInfo
from mmray.prepared import SplitReader
from mmray.tasks import build
from mmray.training import checkpoint, run_folder

_PART_ROWS = 32768  # rows of one task and one Parquet file


def predict(run_dir: Path, split: str = "test", source: str | None = None, verbose: bool = False) -> Path:
    """Predict every row of `split`, or of the corpus at `source`, with the best checkpoint; return the folder.

    Predictions made by the same checkpoint are kept as they are. ValueError where the split or checkpoint is missing.
    """
    run = run_folder.read_run(run_dir)
    trained_on = run_folder.read_info(run_dir)
    if source is not None:
        run, split = _over_new_files(run, source), "all"
    folder = prepare(run, verbose)
    info = prepared.read_info(folder)
    rows = info.split(split).rows
    task = build(run, trained_on)
    best = checkpoint.best(run_dir, run.train.monitor or task.monitor, task.maximise)
    out = run_dir / "predictions" / (split if source is None else info.id)
    width = run.predict.top_k and min(max(run.predict.top_k, info.split(split).max_labels), len(info.class_names))
    result = PredictionsInfo(
        run=run.name,
        split=split,
        step=best.step,
        rows=rows,
        labelled=any(c.name == "labels" for c in info.columns) and info.split(split).max_labels > 0,
        top_k=width,
        num_classes=len(info.class_names),
    )
    if (out / "predictions.json").exists() and predictions.read_info(out) == result:
        say(f"predictions {out} are there: {rows:,} rows")
        return out
    runtime.start(verbose)
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    done = _write_parts(run, run_dir, folder, result, aside)
    if done != rows:
        raise RuntimeError(f"predicted {done:,} of {rows:,} rows: this must not happen, please report it")
    write_json(aside / "predictions.json", result.model_dump(mode="json"))
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)
    say(f"predicted {rows:,} rows into {out}")
    return out


def _over_new_files(run: config.Run, source: str) -> config.Run:
    values = run.to_dict()
    values["dataset"]["path"] = source
    values["prepare"]["split"] = {"by": "none"}
    return config.from_dict(values)


def _write_parts(run: config.Run, run_dir: Path, folder: Path, result: PredictionsInfo, aside: Path) -> int:
    starts = range(0, result.rows, _PART_ROWS)
    gpus = runtime.cluster_gpus()
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
    with progress("predict", result.rows, "rows") as advance:
        for row in data.iter_rows():
            done += row["rows"]
            advance(done, f"{run.name} at step {result.step}")
    return done


class _Predictor:
    """Holds the model; one call predicts one range of rows and writes its file."""

    def __init__(self, run: dict[str, Any], run_dir: str, folder: str, result: PredictionsInfo, aside: str) -> None:
        import torch

        self._run, self._result, self._aside = config.from_dict(run), result, Path(aside)
        self._task = build(self._run, run_folder.read_info(Path(run_dir)))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self._task.build_model().to(self._device).eval()
        checkpoint.load_model(checkpoint.folder_of(Path(run_dir), result.step), self._model)
        labels = ("labels",) if result.labelled else ()
        columns = ("id", *labels, *self._task.columns(labelled=False))
        self._reader = SplitReader(Path(folder), prepared.read_info(Path(folder)).split(result.split), columns)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import torch

        start = int(row["start"])
        stop = min(start + _PART_ROWS, self._result.rows)
        path = self._aside / f"part-{start // _PART_ROWS:05d}.parquet"
        writer = None
        with torch.inference_mode():
            for table in self._reader.batches(start, stop, self._run.predict.batch_size):
                scores, _ = self._task.evaluate(self._model, self._task.collate(table).to(self._device))
                labels = table.column("labels").combine_chunks() if self._result.labelled else None
                ids = table.column("id").combine_chunks()
                predicted = predictions.to_table(ids, labels, scores.cpu().numpy(), self._result.top_k)
                writer = writer or pq.ParquetWriter(path, predicted.schema)
                writer.write_table(predicted)
        assert writer is not None  # a range is never empty
        writer.close()
        return {"rows": stop - start}
