"""`mmray predict`: rows, or files, through a trained model, in as many processes as there are CPUs or GPUs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mmray import config, lookup, predictions, prepared
from mmray.console import progress, say
from mmray.files import begin_folder, delete_leftovers, locked, publish_folder, write_json, written_whole
from mmray.on_ray import runtime
from mmray.on_ray.machines import cluster_of_ray
from mmray.on_ray.prepare import prepare, prepare_for
from mmray.predictions import PredictionsInfo
from mmray.prepared import SplitReader
from mmray.schema import Column, DatasetInfo
from mmray.storage import at
from mmray.tasks import FileTask, Task, build, monitored
from mmray.training import checkpoint, run_folder, trained

MAY_CHANGE = ("task", "predict")  # sections of a trained run that a prediction may set anew
_PART_MB = 32  # of the prepared dataset, in memory, that one task predicts into one Parquet file


def predict(
    run_dir: Path,
    split: str = "test",
    corpus: str | None = None,
    overrides: Sequence[str] = (),
    verbose: bool = False,
) -> tuple[Path, Path]:
    """Predict every row of a split with the best checkpoint; return the folders of predictions and prepared dataset.

    `corpus`, a path or `<dataset>=<path>`, is another corpus than the run's own: predictions/<dataset>. `overrides`
    change settings of the task or of prediction: predictions/<split>+<key=value>. Predictions made by the same
    checkpoint are kept as they are. ValueError where the split or checkpoint is missing.
    """
    run = config.with_overrides(run_folder.read_run(run_dir), overrides, MAY_CHANGE)
    if run.ensemble is not None and run.ensemble.method != "soup":
        from mmray.on_ray.ensemble import predict_ensemble  # which predicts with each of its members

        return predict_ensemble(run_dir, split, corpus, overrides, verbose)
    task = build(run, run_folder.read_info(run_dir))
    best = checkpoint.best(run_dir, *monitored(run, task))
    name = split
    if corpus is None:
        folder = prepare_for(run, run_dir, verbose)
    else:
        run = _over(run, corpus, task.info)
        folder = prepare(run, verbose)
        if run.prepare.split.by == "none":
            split = "all"
        name = run.dataset.name if split in ("test", "all") else f"{run.dataset.name}-{split}"
    name += "".join(f"+{override}" for override in sorted(overrides))
    if "/" in name:
        raise ValueError(f"--set {' '.join(overrides)}: a value with a slash can't be part of a folder's name")
    info = prepared.read_info(folder)
    result = PredictionsInfo(
        run=run.name,
        dataset=info.id,
        split=split,
        step=best.step,
        rows=info.split(split).rows,
        labelled=info.split(split).labelled_rows > 0,
        columns=task.prediction_columns(info.split(split)),
    )
    out = run_dir / "predictions" / name
    if (out / "predictions.json").exists():
        there = predictions.read_info(out)
        if there == result:
            say(f"predictions {out} are there: {result.rows:,} rows")
            return out, folder
        if (there.dataset, there.split) != (result.dataset, result.split):
            raise ValueError(
                f"{out} holds predictions of {there.dataset}, split {there.split!r}; these would be of "
                f"{result.dataset}, split {result.split!r}: remove that folder, if you don't need it any more"
            )
    runtime.start(verbose)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / ".lock", f"predicting with {run_dir}", wait=True):
        delete_leftovers(out.parent)
        aside = begin_folder(out)
        done, _ = write_parts(_write_predictions, run, run_dir, folder, result, aside, "predict")
        write_json(aside / "predictions.json", result.model_dump(mode="json"))
        publish_folder(aside, out)
    say(f"predicted {done:,} rows into {out}")
    return out, folder


def predict_files(
    run_dir: Path,
    source: str,
    out: Path | None,
    extras: Sequence[str] = (),
    overrides: Sequence[str] = (),
    verbose: bool = False,
) -> list[Path]:
    """Predict single files, one by one, with the best checkpoint; return what was written.

    `out` and `extras`: see `mmray.tasks.FileTask`; without `out` the files go into the run folder. One file is
    predicted in this process, more of them by Ray. ValueError where the task does not work on files, and, when all
    others are done, for files that could not be predicted.
    """
    run = config.with_overrides(run_folder.read_run(run_dir), overrides, MAY_CHANGE)
    require_model(run, run_dir, "predicts splits and corpora, not single files or a stream")
    task = build(run, run_folder.read_info(run_dir))
    if not hasattr(task, "predict_file"):
        raise ValueError(
            f"task.name={run.task.name} does not predict single files; for a corpus of them: "
            f"mmray predict {run_dir} --corpus {run.dataset.name}={source}"
        )
    files = task.files(source)
    out = out or run_dir / "predictions" / "files"
    outputs = task.outputs(files, out, frozenset(extras))
    predictor = (run.to_dict(), str(run_dir.absolute()), checkpoint.best(run_dir, *monitored(run, task)).step)
    jobs = [
        {"file": str(file.absolute()), "outputs": {kind: str(path.absolute()) for kind, path in of_file.items()}}
        for file, of_file in zip(files, outputs, strict=True)
    ]
    answers: Iterator[dict[str, Any]]
    if len(jobs) == 1:
        answers = map(_FilePredictor(*predictor), jobs)
    else:
        runtime.start(verbose)
        ray_data = runtime.ray_data()
        data = ray_data.from_items(jobs, override_num_blocks=len(jobs))
        answers = data.map(_FilePredictor, fn_constructor_args=predictor, **_placed(run, len(jobs))).iter_rows()
    bad = []
    with progress("predict", len(jobs), "files") as advance, runtime.without_core_remarks():
        for done, answer in enumerate(answers, 1):
            if answer["bad"]:
                bad.append(answer["bad"])
            elif len(jobs) <= 10:
                say(answer["said"])
            advance(done, run.name)
    if bad:
        listed = "\n  ".join(bad[:20])
        raise ValueError(f"{len(bad):,} of {len(jobs):,} files could not be predicted:\n  {listed}")
    return [path for of_file in outputs for path in of_file.values()]


def predict_stream(run_dir: Path, pcm: str, overrides: Sequence[str] = ()) -> None:
    """Predict raw samples from standard input while they arrive, and write the results to standard output."""
    run = config.with_overrides(run_folder.read_run(run_dir), overrides, MAY_CHANGE)
    require_model(run, run_dir, "predicts splits and corpora, not single files or a stream")
    task = build(run, run_folder.read_info(run_dir))
    if not hasattr(task, "predict_stream"):
        raise ValueError(f"task.name={run.task.name} does not predict a stream of samples")
    step = checkpoint.best(run_dir, *monitored(run, task)).step
    task, model, device = _Model(run.to_dict(), str(run_dir), step).loaded
    task.predict_stream(model, device, sys.stdin.buffer, pcm, sys.stdout)


def require_model(run: config.Run, run_dir: Path, does: str) -> None:
    """ValueError, saying what it `does` instead, where a run folder has no model of its own, but those of members."""
    if run.ensemble is not None and run.ensemble.method != "soup":
        raise ValueError(f"{run_dir} is an ensemble, which {does}")


def _over(run: config.Run, corpus: str, trained_on: DatasetInfo) -> config.Run:
    """The run over another corpus, in the corpus's own splits, or, where it has none, all rows in one."""
    values = run.to_dict()
    name, equals, path = corpus.rpartition("=")
    own: str = run.dataset.name
    name = name if equals else own
    fields = lookup.load("dataset", name).Config.model_fields
    if "path" not in fields:
        raise ValueError(f"--corpus {corpus}: {name!r} has no single path; give <dataset>=<path>, such as mir1k={path}")
    if name == own:
        values["dataset"]["path"] = path
    else:
        values["dataset"] = {"name": name, "path": path}
        for key in ("cfp", "image"):  # the model knows no other feature
            if key in fields and hasattr(run.dataset, key):
                values["dataset"][key] = getattr(run.dataset, key).model_dump(mode="json")
    values["dataset"].pop("remix", None)  # further rows to train on
    if "classes" in fields:  # it may have some of them only, and the model knows them by number
        values["dataset"] |= {"classes": trained_on.class_names, "split": {"by": "none"}}
        if "augment" in fields:
            values["dataset"]["augment"] = {}
        if "conflicting_labels" in fields:
            values["dataset"]["conflicting_labels"] = "keep"  # every image gets its prediction
    other = config.from_dict(values)
    sources = lookup.load("dataset", other.dataset.name).sources(other.dataset)
    values["prepare"]["split"] = {"by": "corpus" if equals and all(s.split for s in sources) else "none"}
    return config.from_dict(values)


def _placed(run: config.Run, num_jobs: int) -> dict[str, Any]:
    """Arguments of Ray Data's `map` for actors that hold a model.

    There is one a GPU of the machines that train, or one a CPU but for one of those for data.
    """
    cluster = cluster_of_ray()
    trains = [node for node in cluster.nodes if node.suits(run.resources.train)]
    gpu = int(bool(run.resources.use_gpu) and any(node.gpus for node in trains))
    place, key = (run.resources.train, "train") if gpu else (run.resources.data, "data")
    fits = cluster.at(place, f"resources.{key}").slots(1, gpu, 0, place.custom)
    strategy = runtime.ray_data().ActorPoolStrategy(size=min(num_jobs, max(1, fits if gpu else fits - 1)))
    return {"compute": strategy, "num_cpus": 1, "num_gpus": gpu, **runtime.placement(place)}


class Announced(Protocol):
    """What is written, announced: rows of a split of a prepared dataset, by a checkpoint."""

    split: str
    step: int
    rows: int
    columns: list[Column]


Loaded = tuple[Task, torch.nn.Module, torch.device]
WriteRows = Callable[[Loaded, SplitReader, range, int, Announced, Path], int]
"""From a range of rows of a split, so many in a batch, to one Parquet file; it says how many rows it has written."""


def write_parts(
    write: WriteRows, run: config.Run, run_dir: Path, folder: Path, result: Announced, aside: Path, verb: str
) -> tuple[int, int]:
    """Have every row of a split written into `aside/part-*.parquet` by Ray; return rows read and rows written.

    `write` is a function of a module, which says how, `verb` names it to those who wait. ValueError for bad input.
    """
    split = prepared.read_info(folder).split(result.split)
    rows_a_part = max(1, int((_PART_MB << 20) * split.rows / max(1, split.num_bytes)))
    starts = range(0, split.rows, rows_a_part)
    parts = [
        {"part": part, "start": start, "stop": min(start + rows_a_part, split.rows)}
        for part, start in enumerate(starts)
    ]
    data = (
        runtime.ray_data()
        .from_items(parts, override_num_blocks=len(parts))
        .map(
            _PartWriter,
            fn_constructor_args=(
                write,
                run.to_dict(),
                str(run_dir.absolute()),
                str(folder.absolute()),
                result,
                str(aside.absolute()),
            ),
            **_placed(run, len(parts)),
        )
    )
    done = written = 0
    with progress(verb, split.rows, "rows") as advance, runtime.without_core_remarks():
        for row in data.iter_rows():
            if row["bad"]:
                raise ValueError(row["bad"])
            done, written = done + row["rows"], written + row["written"]
            advance(done, f"{run.name} at step {result.step}")
    if done != split.rows:
        raise RuntimeError(f"{verb}: {done:,} of {split.rows:,} rows: this must not happen, please report it")
    return done, written


class _Model:
    """A trained model on the device that this process has, loaded when it is first needed."""

    def __init__(self, run: dict[str, Any], run_dir: str, step: int) -> None:
        self.run, self._run_dir, self._step = config.from_dict(run), at(run_dir), step

    @functools.cached_property
    def loaded(self) -> Loaded:
        task, model = trained.load(self.run, self._run_dir, self._step)
        device = torch.device("cuda" if self.run.resources.use_gpu and torch.cuda.is_available() else "cpu")
        return task, model.to(device), device


class _PartWriter:
    """One call writes the file of one range of rows."""

    def __init__(
        self, write: WriteRows, run: dict[str, Any], run_dir: str, folder: str, result: Announced, aside: str
    ) -> None:
        self._model, self._folder = _Model(run, run_dir, result.step), at(folder)
        self._write, self._result, self._aside = write, result, at(aside)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        rows, path = range(part["start"], part["stop"]), self._aside / f"part-{part['part']:05d}.parquet"
        try:
            written = self._written(rows, path)
        except (ValueError, OSError) as error:  # an answer, not a failure of the task: no retry, no stack trace
            return {"rows": 0, "written": 0, "bad": str(error)}
        return {"rows": len(rows), "written": written, "bad": ""}

    def _written(self, rows: range, path: Path) -> int:
        loaded, info = self._model.loaded, prepared.read_info(self._folder)
        known = {column.name for column in info.columns}
        carried = [c.name for c in self._result.columns if c.name in known]
        names = tuple(dict.fromkeys([*carried, *loaded[0].columns(labelled=False)]))
        reader = SplitReader(self._folder, info.split(self._result.split), names)
        with torch.inference_mode(), written_whole(path) as aside:
            return self._write(loaded, reader, rows, self._model.run.predict.batch_size, self._result, aside)


def _write_predictions(
    loaded: Loaded, reader: SplitReader, rows: range, batch_size: int, result: Announced, path: Path
) -> int:
    task, model, device = loaded
    inputs = task.columns(labelled=False)
    with predictions.open_writer(path, result.columns) as writer:
        for table in reader.batches(rows.start, rows.stop, batch_size):
            scores, _ = task.evaluate(model, task.collate(table.select(inputs)).to(device))
            writer.write_table(task.predictions(result.columns, table, scores.cpu()))
    return len(rows)


class _FilePredictor:
    """One call predicts one file."""

    def __init__(self, run: dict[str, Any], run_dir: str, step: int) -> None:
        self._model = _Model(run, run_dir, step)

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        outputs = {kind: at(path) for kind, path in job["outputs"].items() if path}
        try:
            task, model, device = self._model.loaded
            file_task: FileTask = task
            with torch.inference_mode():
                said = file_task.predict_file(model, device, at(job["file"]), outputs)
        except (ValueError, OSError) as error:
            return {"said": "", "bad": str(error)}
        return {"said": said, "bad": ""}
