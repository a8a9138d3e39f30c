"""Ray Tune as the executor of a search: it places trials, keeps their processes and sees when one dies.

It has no memory of its own: its experiment state goes to a scratch folder and is never read. What outlives a crash is
the Optuna study and the run folder of each trial, and a search goes on from those alone: see `mmray.on_ray.search`.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mmray import tuning
from mmray.on_ray.plan import Plan
from mmray.on_ray.search import Job, Search
from mmray.on_ray.trial import Trial


def execute(search: Search, placed: Plan, data: dict[str, Path], verbose: bool) -> None:
    """Have Ray Tune run the trials of a search to its end."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 it then says nothing
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # paths of a run file are from here
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # of trials that failed, the search says why itself
    executor = _Executor(search, placed, data)
    labels = dict(placed.resources.train.labels)
    at = {"bundle_label_selector": [labels] * placed.num_workers} if labels else {}
    bundles = tune.PlacementGroupFactory([placed.worker_resources] * placed.num_workers, **at)
    settings = tune.TuneConfig(num_samples=-1, search_alg=executor, scheduler=_Judge(executor), reuse_actors=True)
    # Tune needs a place for its own notes only, and only here: without checkpoints of its own no other node writes any.
    with tempfile.TemporaryDirectory(prefix="mmray-", ignore_cleanup_errors=True) as scratch:
        run_config = tune.RunConfig(
            name="trials",
            storage_path=scratch,
            verbose=2 if verbose else 0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        )
        trainable = tune.with_resources(Trial, bundles)
        tune.Tuner(trainable, tune_config=settings, run_config=run_config).fit()
    if search.why_stopped:
        raise ValueError(search.why_stopped)


def job_settings(job: Job, placed: Plan, data: dict[str, Path], objectives: list[str]) -> dict[str, Any]:
    """What the processes of a trial need; `data` has the prepared datasets by `tuning.data_key`."""
    return {
        "runs": [run.to_dict() for run in job.runs],
        "folder": str(data[tuning.data_key(job.runs[0])].absolute()),
        "until_epoch": job.until_epoch,
        "parent": job.parent and str(job.parent),
        "objectives": objectives,
        "size": placed.num_workers,
        "use_gpu": placed.use_gpu,
        "threads": placed.threads,
        "resources": {"num_cpus": placed.cpus, "num_gpus": int(placed.use_gpu)},
    }


def conclude(search: Search, number: int, report: dict[str, Any]) -> None:
    """Tell a search what came of a trial, by the trial's last report."""
    outcome = json.loads(report["outcome"])
    if "failed" in outcome:
        search.fail(number, outcome["failed"])
    else:
        search.finish(number, outcome["metrics"])


class _Executor(Searcher):
    """The search as Ray Tune asks it: for the next trial, and with what came of one."""

    def __init__(self, search: Search, placed: Plan, data: dict[str, Path]) -> None:
        super().__init__(metric="training_iteration", mode="max")  # Tune asks for one, and nobody looks at it
        self.search = search
        self.numbers: dict[str, int] = {}
        self._placed, self._data = placed, data

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        job = self.search.next()
        if job is None:
            return Searcher.FINISHED if self.search.is_over else None
        self.numbers[trial_id] = job.number
        return {"job": json.dumps(job_settings(job, self._placed, self._data, list(self.search.objectives)))}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self.numbers[trial_id]
        if error:
            self.search.lost(number)
        elif result and "outcome" in result:
            conclude(self.search, number, result)
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
