"""`mmray tune`: a search over runs. Optuna decides and remembers, Ray Tune executes.

Ray Tune places the trials, keeps their processes from trial to trial and sees when one dies. It is given no memory of
its own: its experiment state is written to a scratch folder and never read. What outlives a crash is the Optuna study
and the run folder of each trial, and a search goes on from those alone: see `mmray.on_ray.search`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mmray import config, prepared, study, tuning
from mmray.console import say
from mmray.files import delete_leftovers, locked
from mmray.on_ray import runtime, samplers
from mmray.on_ray.plan import Plan, cluster_of_ray, plan
from mmray.on_ray.prepare import prepare
from mmray.on_ray.search import FACTS, Job, Search
from mmray.on_ray.train import check_rows
from mmray.on_ray.trial import Trial
from mmray.on_ray.trial_table import TrialTable
from mmray.study import StudyInfo
from mmray.tasks import Task, build, monitored


def tune(run: config.Run, verbose: bool = False) -> Path:
    """Search as the run's section tune says, or go on with the search; return the folder of the study.

    ValueError, before anything is launched, where the space does not fit the run, settings don't go together or the
    cluster is too small; and where all trials fail.
    """
    space, folder = tuning.space_of(run), run.run_dir
    with locked(folder.with_name(f".{folder.name}.lock"), f"searching in {folder}", wait=False):
        data = {tuning.data_key(variant): prepare(variant, verbose) for variant in tuning.data_variants(run, space)}
        info = prepared.read_info(next(iter(data.values())))
        objectives, base = _objectives(run, build(run, info))
        samplers.check(base, space, list(objectives))
        _check_models(base, space, data)
        samples = samplers.num_samples(base, space)
        runtime.start(verbose)
        placed = plan(base, cluster_of_ray(), samples, info)
        say(placed.said())
        study.open_study(run)
        before = study.read_info(folder).trials if (folder / "study.json").exists() else []
        if before:
            finished = sum(trial.state != "running" for trial in before)
            say(f"going on with {folder}: {finished} of {samples} trials are finished")
        table = TrialTable(*next(iter(objectives.items())), samples, before)
        search = Search(base, space, folder, objectives, placed.concurrency, table)
        if not search.is_over:
            with table.shown(), runtime.without_core_remarks():
                _execute(search, placed, data, verbose)
        _say_outcome(search.write(importances=True), search, folder)
    return folder


def _objectives(run: config.Run, task: Task) -> tuple[dict[str, Any], config.Run]:
    """What the search is for, and the run with the first metric among it monitored."""
    assert run.tune is not None
    name, maximise = monitored(run, task)
    objectives = run.tune.objectives or {name: "max" if maximise else "min"}
    for name, direction in objectives.items():
        if name not in FACTS and "/" not in name:
            raise ValueError(f"tune.objectives: {name!r} is neither a metric, such as {task.monitor}, nor {FACTS}")
        if name.startswith("val/"):
            run = run.model_copy(update={"train": run.train.model_copy(update={"monitor": name})})
            if monitored(run, task)[1] != (direction == "max"):
                raise ValueError(f"tune.objectives: {name} is better the other way; {direction!r} would keep the worst")
            break
    return objectives, run


def _check_models(run: config.Run, space: tuning.Space, data: dict[str, Path]) -> None:
    """ValueError where a choice of the space gives a run that does not fit its task or its rows."""
    import torch

    assert run.tune is not None
    if run.resources.feed == "ray_data":
        raise ValueError("resources.feed: ray_data has its tasks beside the trials, which take all CPUs: feed=thread")

    def options(param: tuning.Param) -> list[Any]:
        branches = isinstance(param.range, tuning.Choice) and (param.range.when or param.key.startswith("model."))
        return list(param.range.values() if branches else param.range.ends()[:1])

    for values in tuning.combinations(space, options):
        one = tuning.run_of(run, space, values)
        try:
            task = build(one, prepared.read_info(data[tuning.data_key(one)]))
            with torch.device("meta"):
                task.build_model()
            check_rows(one, task)
        except ValueError as error:
            raise ValueError(f"tune.space, with {tuning.describe(values)}: {error}") from None


def _execute(search: Search, placed: Plan, data: dict[str, Path], verbose: bool) -> None:
    """Have Ray Tune run the trials of a search to its end."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 it then says nothing
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of trials that failed, the search says why itself
    delete_leftovers(search.folder)
    scratch = Path(tempfile.mkdtemp(dir=search.folder, prefix=".deleted-"))  # that a killed search leaves is deleted
    executor = _Executor(search, placed, data)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(Trial, ray_tune.PlacementGroupFactory([placed.worker_resources] * placed.num_workers)),
        tune_config=ray_tune.TuneConfig(
            num_samples=-1, search_alg=executor, scheduler=_Judge(executor), reuse_actors=True
        ),
        run_config=ray_tune.RunConfig(
            name="trials",
            storage_path=str(scratch.absolute()),
            verbose=2 if verbose else 0,
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if search.why_stopped:
        raise ValueError(search.why_stopped)


class _Executor(Searcher):
    """The search as Ray Tune asks it: for the next trial, and with what came of one."""

    def __init__(self, search: Search, placed: Plan, data: dict[str, Path]) -> None:
        super().__init__(metric="training_iteration", mode="max")  # Tune asks for one, and nobody looks at it
        self.search = search
        self.numbers: dict[str, int] = {}
        self._data = data
        self._same = {
            "objectives": list(search.objectives),
            "size": placed.num_workers,
            "use_gpu": placed.use_gpu,
            "threads": placed.threads,
            "resources": {"num_cpus": placed.cpus, "num_gpus": int(placed.use_gpu)},
        }

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        job = self.search.next()
        if job is None:
            return Searcher.FINISHED if self.search.is_over else None
        self.numbers[trial_id] = job.number
        return {"job": json.dumps(self._settings(job))}

    def _settings(self, job: Job) -> dict[str, Any]:
        return self._same | {
            "runs": [run.to_dict() for run in job.runs],
            "folder": str(self._data[tuning.data_key(job.runs[0])].absolute()),
            "until_epoch": job.until_epoch,
            "parent": job.parent and str(job.parent),
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.numbers[trial_id]
        if error:
            self.search.lost(number)
        elif result and "outcome" in result:
            outcome = json.loads(result["outcome"])
            if "failed" in outcome:
                self.search.fail(number, outcome["failed"])
            else:
                self.search.finish(number, outcome["metrics"])
        self.search.left(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search is never restored from Tune."""


class _Judge(FIFOScheduler):
    """The search as Ray Tune asks it whether a trial goes on."""

    def __init__(self, executor: _Executor) -> None:
        super().__init__()
        self._executor = executor

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self._executor.numbers[trial.trial_id]
        go_on = self._executor.search.report(number, result["epoch"], json.loads(result["metrics"]))
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP


def _say_outcome(info: StudyInfo, search: Search, folder: Path) -> None:
    states = Counter(trial.state for trial in info.trials)
    counted = ", ".join(f"{number} {state}" for state, number in states.items())
    say(f"searched {folder}: {counted} of {info.samples} trials; {info.disk_bytes / 2**20:,.0f} MB on disk")
    for number in info.best[:5] if len(info.objectives) > 1 else info.best[:1]:
        trial = info.trial(number)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in trial.objectives.items())
        say(f"the best: trial {number}, {scores} ({tuning.describe(trial.values)})")
    if (folder / "best.yaml").exists():
        say(f"train it again: mmray train {folder / 'best.yaml'}")
    if not search.is_complete:
        say(f"the search is not at its end; go on: mmray tune {folder / 'study.yaml'}")
