"""A study: the folder of a search, and what is known of its trials without Optuna.

runs/<name>/
    study.yaml          the resolved run, with its section tune
    study.db            Optuna's storage, unless tune.storage says otherwise; in a store, a copy of it
    study.json          every trial in plain values, as of the last change: what reports read
    best.yaml           the run of the best trial, as `mmray train` takes it
    trials/<number>/    the run folder of each trial
    report/             see mmray.reporting.study
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mmray import config
from mmray.files import write_json, write_text
from mmray.tuning import Choice, Plain, Space, Values, params

# A search that goes on may be given these anew; anything else would make it another search.
_MAY_CHANGE = (
    "out",
    "prepare.out",
    "prepare.max_bad_fraction",
    "published",
    "resources",
    "tune.concurrency",
    "tune.keep_best",
    "tune.points",
    "tune.sampler",
    "tune.samples",
    "tune.time_budget_s",
)


class TrialInfo(BaseModel):
    """One trial.

    `values` by the names of parameters; `objectives` when it is finished, a mean over its seeds; `curve` holds the
    first objective after each epoch of its first seed; `reason` says why it failed. `parent` is the trial whose
    weights it began with.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    state: Literal["running", "complete", "pruned", "failed"]
    values: Values
    objectives: dict[str, float] = {}
    curve: list[tuple[int, float]] = []
    reason: str = ""
    seconds: float | None = None
    parent: int | None = None


class ParamInfo(BaseModel):
    """One parameter of the space: `ends` of numbers, or the labels of `choices`."""

    model_config = ConfigDict(extra="forbid")

    name: str
    key: str
    ends: tuple[float, float] | None = None
    log: bool = False
    choices: list[Plain] | None = None


class StudyInfo(BaseModel):
    """`study.json`. `best` has the numbers of the best trials, best first; with several objectives, the Pareto front.

    `importances` says, for each objective, which share of its variation each parameter explains.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    objectives: dict[str, Literal["max", "min"]]
    samples: int
    params: list[ParamInfo]
    trials: list[TrialInfo]
    best: list[int]
    importances: dict[str, dict[str, float]] = {}
    disk_bytes: int = 0

    def trial(self, number: int) -> TrialInfo:
        """The trial of this number."""
        return next(trial for trial in self.trials if trial.number == number)


def is_study(folder: Path) -> bool:
    """Whether this is the folder of a search."""
    return (folder / "study.yaml").exists()


def open_study(run: config.Run) -> Path:
    """Create the folder of a run's search, or open it to go on; ValueError where it holds something else."""
    folder = run.run_dir
    if (folder / "config.yaml").exists():
        raise ValueError(f"{folder} holds a trained run; give the search a name of its own, --set name=...")
    if is_study(folder):
        before, now = _flat(read_run(folder).to_dict()), _flat(run.to_dict())
        changed = [
            key
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{may}.") for may in _MAY_CHANGE)
        ]
        if changed:
            lines = "\n".join(f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
            raise ValueError(
                f"{folder} holds another search:\n{lines}\n"
                f"give this one a name of its own (--set name=...), or remove the folder to start anew"
            )
    write_text(folder / "study.yaml", run.to_yaml())
    return folder


def read_run(folder: Path) -> config.Run:
    """The resolved run of a study, with its section tune; ValueError where the folder is no study's."""
    if not is_study(folder):
        raise ValueError(f"{folder} is not the folder of a search: it has no study.yaml; `mmray tune` makes one")
    return config.load(folder / "study.yaml")


def read_info(folder: Path) -> StudyInfo:
    """What is known of the trials; ValueError where there is none yet."""
    path = folder / "study.json"
    if not path.exists():
        raise ValueError(f"{folder} has no study.json: no trial has begun; go on with mmray tune {folder}/study.yaml")
    return StudyInfo.model_validate(json.loads(path.read_text(encoding="utf-8")))


def write_info(folder: Path, info: StudyInfo) -> None:
    """Write `study.json` whole."""
    write_json(folder / "study.json", info.model_dump(mode="json"))


def trial_name(number: int, seed: int | None = None) -> str:
    """The name of a trial's run folder; with several seeds, each has one."""
    return f"{number:04d}" if seed is None else f"{number:04d}-seed-{seed}"


def number_of(name: str) -> int | None:
    """The number of the trial whose run folder has this name; None where it is none's."""
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else None


def trial_dirs(folder: Path, number: int) -> list[Path]:
    """The run folders of a trial that are there."""
    found = (folder / "trials").glob(f"{trial_name(number)}*")
    return sorted(run_dir for run_dir in found if number_of(run_dir.name) == number)


def param_infos(space: Space) -> list[ParamInfo]:
    """The searched parameters: those that have more than one value."""
    found = []
    for param in params(space):
        if isinstance(param.range, Choice):
            info = ParamInfo(name=param.name, key=param.key, choices=param.range.values())
        else:
            ends = (param.range.low, param.range.high)
            info = ParamInfo(name=param.name, key=param.key, ends=ends, log=param.range.log)
        if len(set(param.range.ends())) > 1:
            found.append(info)
    return found


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value and prefix + key != "tune.space":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
