"""The decisions of a search and its memory, with trials that are a formula, not a training. Ray is not started."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from formula_search import EPOCHS, LR, MODELS, finish, formula_run, open_search, train

from mmray import config, study
from mmray.on_ray.search import Job

Make = Callable[..., config.Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return functools.partial(formula_run, tmp_path)


def as_plain(job: Job) -> tuple[Any, ...]:
    return job.number, job.values, [run.to_dict() for run in job.runs], job.until_epoch, job.parent


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow)])
def test_interrupted_search_is_the_undisturbed_one(make: Make, sampler: str, tmp_path: Path) -> None:
    """Stopped while a trial is drawn, and while one trains; the values are those of a search in one go."""
    space = MODELS if sampler == "tpe" else LR | {"model.num_experts": {"int": [1, 8]}}
    settings = {"samples": 9, "sampler": {"name": sampler, "startup_trials": 3}}
    whole = finish(open_search(make(space, **settings)))
    (tmp_path / "formula").rename(tmp_path / "whole")
    first = open_search(make(space, **settings))
    for _ in range(5):
        job = first.next()
        assert job is not None
        train(first, job)
    in_flight = first.next()
    assert in_flight is not None
    first.report(in_flight.number, 1, {"val/gap": 0.1})
    second = open_search(make(space, **settings))
    again = second.next()
    assert again is not None
    assert as_plain(again) == as_plain(in_flight)
    train(second, again)
    info = finish(second)
    assert [trial.values for trial in info.trials] == [trial.values for trial in whole.trials]
    assert [trial.number for trial in info.trials] == list(range(9))


@pytest.mark.parametrize("storage", ["sqlite", "journal", "sqlite:///{}/elsewhere.db"])
def test_trial_that_was_never_wholly_drawn_is_none(make: Make, storage: str, tmp_path: Path) -> None:
    run = make(samples=4, storage=storage.format(tmp_path))
    search = open_search(run)
    job = search.next()
    assert job is not None
    train(search, job)
    search._study.ask()  # and killed before it has values
    info = finish(open_search(run))
    assert [trial.state for trial in info.trials] == ["complete"] * 4
    assert [trial.number for trial in info.trials] == [0, 2, 3, 4]
    states = [trial.state.name for trial in search._study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]


def test_tpe_finds_more_than_chance(make: Make) -> None:
    """Of 25 trials each, the mean of the last ten."""

    def last_ten(run: config.Run) -> float:
        return sum(best for trial in finish(open_search(run)).trials[-10:] for best in trial.objectives.values()) / 10

    assert (
        last_ten(make(samples=25))
        > last_ten(make(samples=25, sampler="random").model_copy(update={"name": "random"})) + 0.1
    )


def test_asha_spends_a_third_and_finds_the_best(make: Make) -> None:
    run = make(samples=27, sampler="random", stopper={"name": "asha", "factor": 3})
    info = finish(open_search(run))
    spent = sum(len(trial.curve) for trial in info.trials)
    assert spent < 27 * EPOCHS / 3 + EPOCHS
    best = max(info.trials, key=lambda t: t.curve[0][1])  # the order never changes from epoch to epoch
    assert info.best[0] == best.number
    for trial in info.trials:
        assert len(trial.curve) in (1, 3, 9)  # factor ** rung
        assert (trial.state == "complete") == (len(trial.curve) == 9)


@pytest.mark.parametrize("stopper", ["median", "hyperband"])
def test_other_stoppers_spend_less_than_all(make: Make, stopper: str) -> None:
    info = finish(open_search(make(samples=12, sampler="random", stopper=stopper)))
    assert sum(len(trial.curve) for trial in info.trials) < 0.8 * 12 * EPOCHS
    assert {trial.state for trial in info.trials} == {"complete", "pruned"}


def test_front_is_of_those_that_none_beats(make: Make) -> None:
    info = finish(open_search(make(MODELS, samples=15), {"val/gap": "max", "num_parameters": "min"}))
    scores = {t.number: (t.objectives["val/gap"], -t.objectives["num_parameters"]) for t in info.trials}
    front = {
        n for n, a in scores.items()
        if not any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in scores.values())
    }  # fmt: skip
    assert set(info.best) == front
    assert [scores[n][0] for n in info.best] == sorted((scores[n][0] for n in info.best), reverse=True)


def test_lost_trial_goes_on_once_and_then_has_failed(make: Make) -> None:
    search = open_search(make(samples=2))
    first = search.next()
    assert first is not None
    search.lost(first.number)
    again = search.next()
    assert again is not None
    assert as_plain(again) == as_plain(first)
    search.lost(first.number)
    second = search.next()
    assert second is not None
    assert second.number == 1
    train(search, second)
    info = search.write()
    assert info.trial(0).state == "failed"
    assert info.trial(0).reason.startswith("its process died 2 times: killed, out of memory")
    assert search.is_complete


def test_score_that_is_no_number_has_failed(make: Make) -> None:
    search = open_search(make(samples=2))
    job = search.next()
    assert job is not None
    assert search.report(job.number, 1, {"val/gap": math.nan})
    search.finish(job.number, {"val/gap": math.nan})
    assert search.write().trial(0).reason == "val/gap is nan"


def test_search_gives_up_where_all_trials_fail(make: Make) -> None:
    search = open_search(make(samples=20))
    for _ in range(3):
        job = search.next()
        assert job is not None
        search.fail(job.number, "ValueError: no")
    assert search.is_over
    assert search.why_stopped == "the first 3 trials all failed, the last one with:\n  ValueError: no"


def test_wrong_metric_is_named_after_one_epoch(make: Make) -> None:
    search = open_search(make(), {"val/gapp": "max"})
    job = search.next()
    assert job is not None
    assert not search.report(job.number, 1, {"val/gap": 0.5, "train/loss": 1.0})
    assert search.is_over
    assert "'val/gapp' is no metric of this task; choose from ['latency_ms', 'num_parameters', 'val/gap']" in (
        search.why_stopped
    )


def test_time_budget_leaves_trials_to_go_on_with(make: Make) -> None:
    search = open_search(make(samples=3, time_budget_s=1e-6))
    assert search.is_over
    assert search.next() is None
    search = open_search(make(samples=3, time_budget_s=1000))
    job = search.next()
    assert job is not None
    search._deadline = 0.0
    assert not search.report(job.number, 1, {"val/gap": 0.5})
    search.left(job.number)
    assert not search.is_complete
    assert search.write().trial(0).state == "running"
    assert len(finish(open_search(make(samples=3))).trials) == 3


def test_no_more_trials_than_fit_at_a_time(make: Make) -> None:
    search = open_search(make(samples=5), concurrency=2)
    jobs = [search.next(), search.next()]
    assert search.next() is None
    assert not search.is_over
    assert jobs[0] is not None
    train(search, jobs[0])
    assert search.next() is not None


def test_checkpoints_of_the_best_alone_are_kept(make: Make) -> None:
    run = make(samples=6, keep_best=2, sampler="random")
    search = open_search(run)
    while (job := search.next()) is not None:
        (Path(job.runs[0].out) / job.runs[0].name / "checkpoints").mkdir(parents=True)
        train(search, job)
    info = search.write()
    assert {path.parent.name for path in run.run_dir.glob("trials/*/checkpoints")} == {
        study.trial_name(number) for number in info.best[:2]
    }


def test_storage_that_holds_another_search_is_refused(make: Make, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    finish(open_search(make(samples=2, storage=url)))
    (tmp_path / "formula").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="holds trials of another search called formula"):
        open_search(make(samples=2, storage=url))


def test_grid_tries_every_point_once(make: Make) -> None:
    space = {"train.optimizer.lr": {"choice": [0.1, 0.01]}, "model.num_experts": {"int": [1, 3]}}
    info = finish(open_search(make(space, sampler="grid")))
    points = {(trial.values["train.optimizer.lr"], trial.values["model.num_experts"]) for trial in info.trials}
    assert len(info.trials) == 6
    assert points == {(lr, experts) for lr in (0.1, 0.01) for experts in (1, 2, 3)}


def test_importances_tell_what_matters(make: Make) -> None:
    search = open_search(make(LR | {"train.clip_norm": {"uniform": [1, 2]}}, samples=20, sampler="random"))
    finish(search)
    shares = search.write(at_end=True).importances["val/gap"]
    assert shares["train.optimizer.lr"] > 0.7 > 0.3 > shares["train.clip_norm"]


@pytest.mark.parametrize(
    ("settings", "objectives", "words"),
    [
        ({"stopper": "asha"}, 2, "compares one number"),
        ({"sampler": "cmaes"}, 2, "has one objective"),
        ({"space": MODELS, "sampler": "gp"}, 1, "would be drawn at random"),
        ({"space": MODELS, "sampler": "cmaes"}, 1, "model.name is a choice"),
        ({"sampler": "cmaes"}, 1, "needs two parameters"),
        ({"space": MODELS, "sampler": "pbt"}, 1, "model.name can't change on the way"),
        ({"sampler": "pbt", "stopper": "median"}, 1, "replaces the worst itself"),
        ({"sampler": "pbt", "samples": 9}, 1, "population x generations"),
        ({"sampler": "pbt", "seeds": [1, 2]}, 1, "several tune.seeds"),
        ({"sampler": "grid"}, 1, "has no end of values"),
        ({"storage": "oracle"}, 1, "'oracle' is no storage"),
        ({"storage": "postgresql://me:secret@host/db"}, 1, "PGPASSWORD"),
        ({"samples": 1, "points": ["default", "default"]}, 1, "tries fewer"),
    ],
)
def test_what_does_not_go_together_is_refused(
    make: Make, settings: dict[str, Any], objectives: int, words: str
) -> None:
    names = {"val/gap": "max", "num_parameters": "min"}
    with pytest.raises(ValueError, match=r"tune\.") as caught:
        open_search(make(**settings), dict(list(names.items())[:objectives]))
    assert words in str(caught.value)


def test_study_is_optunas_own(make: Make) -> None:
    """Optuna reads from the storage what study.json says."""
    run = make(MODELS, samples=8, stopper="asha")
    info = finish(open_search(run))
    theirs = optuna.load_study(study_name="formula", storage=f"sqlite:///{run.run_dir}/study.db")
    assert theirs.best_trial.number == info.best[0]
    for ours, other in zip(info.trials, theirs.trials, strict=True):
        assert ours.values == other.params
        assert dict(ours.curve) == other.intermediate_values
        assert ours.state == {"COMPLETE": "complete", "PRUNED": "pruned"}[other.state.name]
