"""Learning rates against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from torch import nn

from mmray.config import Optimizer, Schedule, Train
from mmray.training.optimisation import (
    Progress,
    build_optimizer,
    current_phase,
    epochs_since_best,
    is_finished,
    learning_rate,
    set_rates,
    weight_decay,
)


def rates(schedule: dict[str, object], steps: list[int], watched: tuple[float, ...] = ()) -> list[float]:
    """Learning rates of a phase of 11 epochs of 10 steps, whose highest is 2."""
    settings = Schedule.model_validate(schedule)
    return [learning_rate(settings, 2.0, Progress(step, 10, 11, watched)) for step in steps]


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


def test_plateau_of_a_loss_falls_no_lower_than_told() -> None:
    schedule = Schedule.model_validate({"name": "plateau", "patience": 0, "gamma": 0.1, "min_lr": 0.05})
    losses = [0.5, 0.4, 0.4, 0.4, 0.3, 0.4]
    expected = [2.0, 2.0, 0.2, 0.05, 0.05, 0.05]
    for epochs, rate in enumerate(expected, 1):
        progress = Progress(10 * epochs, 10, 11, losses[:epochs], maximise=False)
        assert learning_rate(schedule, 2.0, progress) == pytest.approx(rate)


def test_step_by_epochs_changes_both_rates() -> None:
    """The schedule of ViT in Genre Vision: every 10 epochs lr x 0.75 and weight decay x 1.25; here every 3."""
    schedule = {"name": "step", "every_epochs": 3, "gamma": 0.75, "weight_decay_gamma": 1.25, "warmup_steps": 5}
    settings = Schedule.model_validate(schedule)
    assert rates(schedule, [4, 5, 29, 30, 59, 60]) == pytest.approx([2, 2, 2, 1.5, 1.5, 1.125])
    decays = [weight_decay(settings, 5e-4, Progress(step, 10, 11)) for step in (0, 29, 30, 59, 60)]
    assert decays == pytest.approx([5e-4, 5e-4, 6.25e-4, 6.25e-4, 7.8125e-4])


def test_plateau_changes_weight_decay() -> None:
    settings = Schedule.model_validate({"name": "plateau", "patience": 1, "weight_decay_gamma": 3})
    assert weight_decay(settings, 0.5, Progress(0, 10, 11, [0.5, 0.4, 0.4])) == 1.5


def test_rates_of_groups() -> None:
    model = nn.ModuleDict({"base": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    settings = Optimizer.model_validate(
        {"name": "sgd", "layer_lr": {"base.bias": 0.5, "base.*": 0.1}, "no_weight_decay": ["*.bias"]}
    )
    optimizer = build_optimizer(settings, model)
    set_rates(optimizer, 2.0, 0.25)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert {name: found[id(parameter)] for name, parameter in model.named_parameters()} == {
        "base.weight": (0.2, 0.25),
        "base.bias": (1.0, 0.0),  # the first pattern that fits counts
        "head.weight": (2.0, 0.25),
        "head.bias": (2.0, 0.0),
    }


PHASES = Train.model_validate(
    {
        "phases": [{"name": name, "epochs": epochs} for name, epochs in (("a", 4), ("b", 3), ("c", 2))],
        "early_stopping": {"patience": 2},
    }
)


@pytest.mark.parametrize(
    ("monitored", "phase", "finished"),
    [
        ([], (0, 0), False),
        ([1, 2, 3], (0, 0), False),
        ([1, 2, 3, 4], (1, 4), False),
        ([1, 1], (0, 0), False),
        ([1, 1, 1], (1, 3), False),  # stopped early
        ([1, 2, 2, 2], (1, 4), False),  # both at once
        ([1, 1, 1, 0, 0], (1, 3), False),  # the next phase counts anew
        ([1, 1, 1, 0, 0, 0], (2, 6), False),
        ([1, 1, 1, 0, 1, 2], (2, 6), False),
        ([1, 1, 1, 0, 0, 0, 5], (2, 6), False),
        ([1, 1, 1, 0, 0, 0, 5, 6], (2, 6), True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], (2, 7), True),
    ],
)
def test_phase_of_an_epoch(monitored: list[float], phase: tuple[int, int], finished: bool) -> None:
    assert current_phase(PHASES, monitored, maximise=True) == phase
    assert is_finished(PHASES, monitored, maximise=True) == finished
    negated = [-value for value in monitored]
    assert current_phase(PHASES, negated, maximise=False) == phase


def test_epochs_since_best() -> None:
    assert epochs_since_best([], maximise=True) == 0
    assert epochs_since_best([0.1, 0.3, 0.2, 0.2], maximise=True) == 2
    assert epochs_since_best([0.1, 0.3, 0.2], maximise=False) == 2
    assert epochs_since_best([0.1, 0.15, 0.2], maximise=True, min_delta=0.1) == 2
