"""Learning rates against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from mmray.config import Train
from mmray.training.optimisation import epochs_since_best, learning_rate


def rates(schedule: dict[str, object], steps: list[int], monitored: tuple[float, ...] = ()) -> list[float]:
    train = Train.model_validate({"optimizer": {"lr": 2.0}, "schedule": schedule})
    return [learning_rate(train, step, 110, monitored, maximise=True) for step in steps]


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert rates({"warmup_steps": 4}, [0, 1, 2, 3, 4, 100]) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_cosine_falls_from_peak_to_final_fraction() -> None:
    schedule = {"name": "cosine", "warmup_steps": 10, "final_fraction": 0.1}
    assert rates(schedule, [10, 60, 110]) == pytest.approx([2.0, 2 * (0.1 + 0.9 * 0.5), 0.2])
    assert rates(schedule, [35]) == pytest.approx([2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))])


def test_step_multiplies_every_so_many_steps() -> None:
    schedule = {"name": "step", "every_steps": 10, "gamma": 0.95}
    assert rates(schedule, [0, 9, 10, 25]) == pytest.approx([2.0, 2.0, 1.9, 1.805])


def test_plateau_waits_for_its_patience() -> None:
    schedule = {"name": "plateau", "patience": 1, "gamma": 0.5}
    for monitored, rate in [
        ((), 2.0),
        ((0.5,), 2.0),
        ((0.5, 0.4), 2.0),
        ((0.5, 0.4, 0.5), 1.0),
        ((0.5, 0.4, 0.5, 0.6), 1.0),
        ((0.5, 0.4, 0.5, 0.5, 0.5), 0.5),
    ]:
        assert rates(schedule, [7], monitored) == [rate]


def test_epochs_since_best() -> None:
    assert epochs_since_best([], maximise=True) == 0
    assert epochs_since_best([0.1, 0.3, 0.2, 0.2], maximise=True) == 2
    assert epochs_since_best([0.1, 0.3, 0.2], maximise=False) == 2
    assert epochs_since_best([0.1, 0.15, 0.2], maximise=True, min_delta=0.1) == 2
