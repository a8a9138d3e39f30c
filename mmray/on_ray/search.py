"""The decisions of a search, and its memory: an Optuna study that is asked and told. No Ray here.

Everything that must outlive this process is in the study's storage and in the run folders of the trials. What a trial
is given depends on the sampler's seed, the trial's number and the trials before it, not on how often the search was
stopped: each trial gets a sampler with a seed of its own.

A study in a store is worked on on this machine. It is brought there before a trial begins, and when one has ended
before its checkpoints may be deleted. So whatever a kill loses of it is found again in the run folder of a trial that
the study knows: that trial only seems to be under way, its epochs are told once more, and it ends as it did.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mmray import config, population, study
from mmray.files import delete_folder, write_text
from mmray.on_ray.samplers import make_pruner, make_sampler, num_samples, suggest
from mmray.on_ray.study_storage import Storage, open_study
from mmray.storage import files_below
from mmray.study import StudyInfo, TrialInfo
from mmray.tuning import Space, Values, grid, points, run_of, walk

FACTS = ("num_parameters", "latency_ms")  # of a model, which objectives may name beside its metrics
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_GIVE_UP_AFTER = 3  # trials, if all of them failed


@dataclass(frozen=True)
class Job:
    """A trial to train: one run a seed, up to an epoch if given, from another trial's weights if given."""

    number: int
    values: Values
    runs: list[config.Run]
    until_epoch: int | None = None
    parent: Path | None = None


class Watcher:
    """What is told of a search while it goes on."""

    def begins(self, number: int, values: Values) -> None:
        """A trial begins, or goes on."""

    def epoch(self, number: int, epoch: int, value: float | None) -> None:
        """A trial has finished an epoch, with this first objective."""

    def ends(self, trial: TrialInfo) -> None:
        """A trial has come to its end."""


class Search:
    """Which trial comes next, whether one goes on, and what came of each."""

    def __init__(
        self,
        run: config.Run,
        space: Space,
        folder: Path,
        objectives: dict[str, Literal["max", "min"]],
        concurrency: int,
        watcher: Watcher,
    ) -> None:
        assert run.tune is not None
        self.settings: config.Tune = run.tune
        self.run, self.space, self.folder, self.objectives = run, space, folder, objectives
        self.concurrency, self._watcher = concurrency, watcher
        self.why_stopped = ""
        self._points = list(grid(space)) if self.settings.sampler.name == "grid" else points(run, space)
        self.samples = num_samples(run, space)
        is_new = not (folder / "study.json").exists()
        self._storage = Storage(self.settings.storage, folder)
        self._study = open_study(self._storage, run.name, list(objectives.values()), is_new)
        self._study.pruner = make_pruner(self.settings.stopper, run.train.epochs)
        self._deadline = time.monotonic() + (self.settings.time_budget_s or math.inf)
        self._active: dict[int, optuna.trial.Trial] = {}
        self._epochs: dict[int, int] = {}  # that an active trial has at most
        self._waiting: deque[int] = deque()
        self._written_best: int | None = None
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "values" in trial.user_attrs:
                self._waiting.append(trial.number)
            else:  # the search was killed while it was being drawn: it is none
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._num_drawn = len(self._trials())
        files = (folder / "trials").glob("*/checkpoints/*/*")
        self._with_checkpoints = {study.number_of(file.parents[2].name) for file in files}
        self._disk_bytes, self._look_again_at = 0, 0.0
        self._storage.keep()
        self.write()  # from here on the trials in the storage are this search's
        self._delete_checkpoints()

    # What comes next

    @property
    def is_over(self) -> bool:
        """Whether no further trial begins; one that trains may still be lost and begin again."""
        return self._is_stopping or (self._all_drawn and not self._waiting and not self._active)

    @property
    def _all_drawn(self) -> bool:
        return self._num_drawn >= self.samples

    @property
    def is_complete(self) -> bool:
        """Whether every trial has come to its end."""
        return self._all_drawn and all(trial.state.is_finished() for trial in self._trials())

    @property
    def _is_stopping(self) -> bool:
        return bool(self.why_stopped) or time.monotonic() >= self._deadline

    def next(self) -> Job | None:
        """The next trial; None where it has to wait for others, or there is none."""
        if self.is_over or len(self._active) >= self.concurrency:
            return None
        if self._waiting:
            number = self._waiting.popleft()
            (frozen,) = (t for t in self._study.get_trials(deepcopy=False) if t.number == number)
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
        else:
            drawn = None if self._all_drawn else self._draw()
            if drawn is None:
                return None
            trial = drawn
        self._active[trial.number] = trial
        job = self._job(trial.number, trial.user_attrs)
        self._epochs[job.number] = job.runs[0].train.epochs
        self._watcher.begins(job.number, job.values)
        self._storage.keep()
        self.write()
        return job

    def _draw(self) -> optuna.trial.Trial | None:
        index, sampler = self._num_drawn, self.settings.sampler
        seed = int(np.random.SeedSequence([sampler.seed, index]).generate_state(1)[0])
        fixed = self._points[index] if index < len(self._points) else {}
        parent: int | None = None
        if sampler.name == "pbt" and index >= self._population:
            found = self._parent(index)
            if found is None:
                return None
            parent, fixed = found
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Optuna calls experimental
            chosen = make_sampler(sampler, seed, self.concurrency, self.samples)
            self._study.sampler = optuna.samplers.PartialFixedSampler(fixed, chosen) if fixed else chosen
            trial = self._study.ask()
            values = walk(self.space, lambda param: suggest(trial, param))
        trial.set_user_attr("parent", parent)
        trial.set_user_attr("values", values)  # last: with it the trial is one
        self._num_drawn += 1
        return trial

    @property
    def _seeds(self) -> list[int]:
        return self.settings.seeds or [self.run.seed]

    @property
    def _population(self) -> int:
        return self.settings.sampler.population or population.DEFAULT_POPULATION

    def _parent(self, index: int) -> tuple[int, Values] | None:
        """The trial that the next one of a population goes on from, and its values; None while one still trains."""
        size = self._population
        trials = self._trials()
        before = [trials[i] for i in population.generation_of(index - size, size)]
        if not all(trial.state.is_finished() for trial in before):
            return None
        sign = 1 if self._study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
        scores = {
            i: sign * trials[i].value
            for i in population.generation_of(index - size, size)
            if trials[i].state == TrialState.COMPLETE
        }
        try:
            place = population.parent_of(index, scores, self.settings.sampler, size)
        except ValueError as error:
            self.why_stopped = str(error)
            return None
        values = trials[place].user_attrs["values"]
        if place != index - size:
            values = population.perturbed(values, self.space, self.settings.sampler.seed, index)
        return trials[place].number, values

    def _job(self, number: int, attributes: dict[str, Any]) -> Job:
        values, parent = attributes["values"], attributes["parent"]
        seeds = self._seeds
        runs = [
            run_of(
                self.run,
                self.space,
                values,
                name=study.trial_name(number, seed if len(seeds) > 1 else None),
                out=str((self.folder / "trials").absolute()),
                seed=seed,
            )
            for seed in seeds
        ]
        until_epoch = None
        if self.settings.sampler.name == "pbt":
            index = [trial.number for trial in self._trials()].index(number)
            until_epoch = (index // self._population + 1) * self.settings.sampler.interval_epochs
        parent_dir = None if parent is None else (self.folder / "trials" / study.trial_name(parent)).absolute()
        return Job(number, values, runs, until_epoch, parent_dir)

    # What came of it

    def report(self, number: int, epoch: int, metrics: dict[str, float]) -> bool:
        """Take in the metrics of a trial's first seed after an epoch; whether the trial goes on."""
        trial, first = self._active[number], next(iter(self.objectives))
        value = metrics.get(first)
        self._watcher.epoch(number, epoch, value)
        missing = [name for name in self.objectives if name not in metrics and name not in FACTS]
        if missing:
            choices = sorted([*(name for name in metrics if name.startswith("val/")), *FACTS])
            self.why_stopped = f"tune.objectives: {missing[0]!r} is no metric of this task; choose from {choices}"
        if self._is_stopping:
            return False  # it goes on when the search does
        if len(self.objectives) > 1 or value is None or not math.isfinite(value):
            return True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an epoch that is done again after the search was killed
            trial.report(value, epoch)
        if epoch < self._epochs[number] and trial.should_prune():
            self._study.tell(number, state=TrialState.PRUNED)
            self._end(number)
            return False
        return True

    def finish(self, number: int, metrics: dict[str, float]) -> None:
        """A trial has been trained to its end; `metrics` of its best checkpoint, with its facts, a mean over seeds."""
        values = {name: metrics[name] for name in self.objectives}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            self.fail(number, ", ".join(f"{name} is {value}" for name, value in bad.items()))
            return
        self._study.tell(number, list(values.values()))
        self._end(number)

    def fail(self, number: int, reason: str) -> None:
        """A trial has failed; the search goes on, unless all trials so far have failed."""
        self._active[number].set_user_attr("reason", reason)
        self._study.tell(number, state=TrialState.FAIL)
        self._end(number)
        ended = [trial for trial in self._trials() if trial.state.is_finished()]
        if len(ended) >= min(_GIVE_UP_AFTER, self.samples) and all(t.state == TrialState.FAIL for t in ended):
            self.why_stopped = f"the first {len(ended)} trials all failed, the last one with:\n  {reason}"

    def lost(self, number: int) -> None:
        """The process of a trial has died: the trial goes on from its last checkpoint, unless that came too often."""
        trial = self._active[number]
        times = trial.user_attrs.get("lost", 0) + 1
        trial.set_user_attr("lost", times)
        if times > self.run.resources.max_failures:
            died = "its process died" if times == 1 else f"its process died {times} times"
            self.fail(number, f"{died}: killed, out of memory, or its machine went down")
        else:
            del self._active[number]
            self._waiting.append(number)

    def left(self, number: int) -> None:
        """A trial trains no longer, whatever the reason."""
        self._active.pop(number, None)

    def _end(self, number: int) -> None:
        self._active.pop(number, None)
        self._with_checkpoints.add(number)
        self._storage.keep()  # before that goes by which it would be found again
        self._delete_checkpoints()
        info = self.write()
        self._watcher.ends(info.trial(number))

    # What is known

    def _trials(self) -> list[FrozenTrial]:
        """All trials but those that were never wholly drawn; a trial's place here counts for its seed."""
        return [t for t in self._study.get_trials(deepcopy=False) if "values" in t.user_attrs]

    def _best(self) -> list[FrozenTrial]:
        finished = [t for t in self._trials() if t.state == TrialState.COMPLETE]
        if len(self.objectives) > 1:
            front = {trial.number for trial in self._study.best_trials}
            finished = [trial for trial in finished if trial.number in front]
        sign = -1 if next(iter(self.objectives.values())) == "max" else 1
        return sorted(finished, key=lambda trial: (sign * trial.values[0], trial.number))

    def _delete_checkpoints(self) -> None:
        """Delete the checkpoints of finished trials but the best, and what a population still goes on from."""
        best = self._best()
        keep = {t.number for t in (best if len(self.objectives) > 1 else best[: self.settings.keep_best])}
        trials = self._trials()
        if self.settings.sampler.name == "pbt":
            keep |= {trial.number for trial in trials[-2 * self._population :]}
        finished = {trial.number for trial in trials if trial.state.is_finished()}
        for number in self._with_checkpoints & finished - keep:
            for run_dir in study.trial_dirs(self.folder, number):
                for state in run_dir.glob("checkpoints/*/state.json"):
                    state.unlink(missing_ok=True)  # first, for in a store they do not go all at once
                if (run_dir / "checkpoints").exists():
                    delete_folder(run_dir / "checkpoints")
            self._with_checkpoints.remove(number)

    def write(self, at_end: bool = False) -> StudyInfo:
        """Write `study.json`, and `best.yaml` where there is a best trial; return what is known.

        `at_end`: with the importances of parameters, and with the size on disk as it is now.
        """
        best = self._best()
        info = StudyInfo(
            name=self.run.name,
            objectives=self.objectives,
            samples=self.samples,
            params=study.param_infos(self.space),
            trials=[self._info(trial) for trial in self._trials()],
            best=[trial.number for trial in best],
            importances=self._importances() if at_end else {},
            disk_bytes=self._size(afresh=at_end),
        )
        study.write_info(self.folder, info)
        if best and best[0].number != self._written_best:
            self._write_best(best[0], info)
        return info

    def _size(self, afresh: bool) -> int:
        """Bytes of all trials, as of a while ago: to look takes no more than a hundredth of the time."""
        began = time.monotonic()
        if afresh or began >= self._look_again_at:
            self._disk_bytes = 0
            for file in files_below(self.folder / "trials"):
                with contextlib.suppress(FileNotFoundError):  # of a checkpoint that has gone meanwhile
                    self._disk_bytes += file.stat().st_size
            self._look_again_at = began + 100 * (time.monotonic() - began)
        return self._disk_bytes

    def _write_best(self, trial: FrozenTrial, info: StudyInfo) -> None:
        self._written_best = trial.number
        if self.settings.sampler.name == "pbt":
            return  # its values changed on the way: the weights are the result
        changes = {"name": f"{self.run.name}-best", "seed": self._seeds[0]}
        run = run_of(self.run, self.space, trial.user_attrs["values"], **changes)
        about = ", ".join(f"{name} {value:.4f}" for name, value in info.trial(trial.number).objectives.items())
        write_text(self.folder / "best.yaml", f"# Trial {trial.number} of {self.run.name}: {about}.\n{run.to_yaml()}")

    def _info(self, trial: FrozenTrial) -> TrialInfo:
        finished = trial.state == TrialState.COMPLETE
        return TrialInfo(
            number=trial.number,
            state=_STATES.get(trial.state, "running"),
            values=trial.user_attrs["values"],
            objectives=dict(zip(self.objectives, trial.values, strict=True)) if finished else {},
            curve=sorted(trial.intermediate_values.items()),
            reason=trial.user_attrs.get("reason", ""),
            seconds=trial.duration.total_seconds() if trial.duration else None,
            parent=trial.user_attrs["parent"],
        )

    def _importances(self) -> dict[str, dict[str, float]]:
        varied = {info.name for info in study.param_infos(self.space)}
        finished = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        found = {}
        for place, name in enumerate(self.objectives):
            there = sorted({param for trial in finished for param in trial.params} & varied)
            if len({trial.values[place] for trial in finished}) < 2 or not there:
                continue
            target: Callable[[FrozenTrial], float] = lambda trial, place=place: trial.values[place]  # noqa: E731
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shares = optuna.importance.get_param_importances(self._study, params=there, target=target)
            found[name] = {param: float(share) for param, share in shares.items()}
        return found
