"""Searches whose study is in a store, with trials that are a formula: killed at every point, they end as on a disk."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from formula_search import MODELS, finish, formula_run, open_search, train

from mmray import config, study
from mmray.on_ray import dashboard
from mmray.on_ray.search import Job, Search
from mmray.on_ray.study_storage import storage_of
from mmray.reporting import study as study_report
from mmray.storage import RemotePath, at
from mmray.study import StudyInfo

SETTINGS: dict[str, Any] = {
    "samples": 3,
    "sampler": {"name": "tpe", "startup_trials": 2},
    "stopper": {"name": "asha", "factor": 3},
    "keep_best": 1,
}


class Killed(BaseException):
    """What a process that is killed would not survive."""


class Kill:
    """Has the process killed before its change number `at` of a store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.num_changes = 0, 0
        for name in ("_put", "unlink", "delete_below", "copy"):
            change = getattr(RemotePath, name)
            monkeypatch.setattr(RemotePath, name, lambda *given, change=change, **more: self._do(change, given, more))

    def _do(self, change: Any, given: Any, more: Any) -> Any:
        self.num_changes += 1
        if self.num_changes == self.at:
            raise Killed
        return change(*given, **more)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return at(f"memory://{tmp_path.name}")


def once(search: Search, job: Job, trained: list[int]) -> None:
    """Train a trial, if the checkpoint in its run folder does not say that it was trained before."""
    state = job.runs[0].run_dir / "checkpoints" / "step-00000001" / "state.json"
    if not state.exists():
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text("{}")
        trained.append(job.number)
    train(search, job)


def all_of(search: Search, trained: list[int]) -> StudyInfo:
    while (job := search.next()) is not None:
        once(search, job, trained)
    return search.write(at_end=True)


def outcome(info: StudyInfo) -> list[Any]:
    """All but what depends on clocks and on the disk."""
    return [info.best, info.importances, [trial.model_copy(update={"seconds": None}) for trial in info.trials]]


def with_checkpoints(run: config.Run) -> set[str]:
    return {file.parents[2].name for file in run.run_dir.glob("trials/*/checkpoints/*/*")}


@pytest.mark.parametrize(
    ("storage", "every"), [("journal", 1), ("sqlite", 9), pytest.param("sqlite", 1, marks=pytest.mark.slow)]
)
def test_killed_anywhere_it_ends_as_the_undisturbed_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, every: int
) -> None:
    """Before each change of the store in turn. No trial is trained, or counted, twice."""
    here = formula_run(tmp_path, MODELS, storage=storage, **SETTINGS)
    whole = outcome(all_of(open_search(here), []))
    assert {trial.state for trial in whole[2]} == {"complete", "pruned"}
    kill = Kill(monkeypatch)
    for kill.at in itertools.count(1, every):
        run = formula_run(store / f"{storage}-{kill.at}", MODELS, storage=storage, **SETTINGS)
        trained: list[int] = []
        kill.num_changes = 0
        with suppress(Killed):
            assert outcome(all_of(open_search(run), trained)) == whole
            break
        if (run.run_dir / "study.json").exists():
            assert len(study.read_info(run.run_dir).trials) <= 1 + len(trained)
        info = all_of(open_search(run), trained)
        assert outcome(info) == whole
        assert sorted(trained) == [0, 1, 2]
        assert with_checkpoints(run) == {study.trial_name(info.best[0])} == with_checkpoints(here)
        best = [config.load(folder / "best.yaml").to_dict() for folder in (run.run_dir, here.run_dir)]
        assert best[0] | {"out": ""} == best[1] | {"out": ""}
    assert kill.at > 4 * 3  # the study and study.json, before and after each trial


def test_dashboards_follow_a_study_in_a_store(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they read lies on this machine, and is brought up to date while they read it."""
    monkeypatch.setattr(dashboard, "_LOOK_EVERY_S", 0.05)
    run = formula_run(store, samples=3)
    search = open_search(run)
    job = search.next()
    assert job is not None
    events = run.run_dir / "trials" / "0000" / "tensorboard" / "events.1"
    events.write_text("one")
    with dashboard._on_this_machine(run.run_dir) as here:
        read = optuna.load_study(study_name=run.name, storage=storage_of("sqlite", here))
        assert [trial.state.name for trial in read.trials] == ["RUNNING"]
        assert (here / "trials/0000/tensorboard/events.1").read_text() == "one"
        train(search, job)
        info = finish(search)
        events.write_text("one, two")
        deadline = time.monotonic() + 60
        while [trial.value for trial in read.trials] != [trial.objectives["val/gap"] for trial in info.trials]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while (here / "trials/0000/tensorboard/events.1").read_text() != "one, two":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not here.exists()
    assert "is looked at every" in capsys.readouterr().out


def test_database_elsewhere_is_not_copied(store: Path, tmp_path: Path) -> None:
    run = formula_run(store, samples=2, storage=f"sqlite:///{tmp_path}/elsewhere.db")
    info = finish(open_search(run))
    assert [trial.state for trial in info.trials] == ["complete"] * 2
    assert not list(run.run_dir.glob("study.db*"))
    assert [trial.number for trial in finish(open_search(run)).trials] == [0, 1]


def test_report_of_a_study_in_a_store(store: Path, tmp_path: Path) -> None:
    run = formula_run(store, samples=3)
    finish(open_search(run))
    page = study_report.write_report(run.run_dir, tmp_path / "report").read_text()
    assert f"mmray train {run.run_dir}/best.yaml" in page
