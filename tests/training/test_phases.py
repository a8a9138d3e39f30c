"""Training in phases: what moves, what does not, when the next begins, and that a stopped run goes on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_runs import OF_PHASES, STEPS, TRAIN, MakeDataset, MakeRun, Normed, Plain, curve, stop_at, train, weights
from torch import nn

from mmray.config import Train
from mmray.training import checkpoint
from mmray.training.phases import check_patterns, frozen_norms, trained_parameters


def test_plateaus_count_within_their_phase(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    """With steps of next to nothing no epoch is better than the first of the run."""
    schedule = {"name": "plateau", "patience": 0, "gamma": 0.5}
    phases = [{"name": "a", "epochs": 4}, {"name": "b", "epochs": 3, "lr": 4e-12}]
    settings = OF_PHASES
    run = make_run(train=settings | {"optimizer": {"lr": 1e-12}, "schedule": schedule, "phases": phases})
    log = train(run, make_dataset())
    assert len(set(curve(log, "epoch", "val/gap"))) == 1
    assert curve(log, "epoch", "lr") == [1e-12, 1e-12, 0.5e-12, 0.25e-12, 4e-12, 4e-12, 2e-12]


# What is frozen, and goes on


@pytest.mark.parametrize(
    ("optimizer", "ema_decay"),
    [
        ({"name": "adam", "weight_decay": 0.1}, None),
        ({"name": "adamw", "weight_decay": 0.1}, 0.5),
        ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.1}, None),
        ({"name": "rmsprop", "momentum": 0.9, "weight_decay": 0.1}, 0.5),
    ],
)
def test_what_is_frozen_does_not_move(
    make_run: MakeRun, make_dataset: MakeDataset, optimizer: dict[str, Any], ema_decay: float | None
) -> None:
    phases: list[dict[str, Any]] = [
        {"name": "all"},
        {"name": "head", "train": ["head.*"]},
        {"name": "neck", "from_layer": "neck.1"},
        {"name": "no norm", "freeze": ["base.1.*", "head.bias"]},
    ]
    settings = OF_PHASES | {"batch_size": 25, "keep_best": 9, "ema_decay": ema_decay}
    settings |= {"optimizer": {"lr": 0.01} | optimizer, "phases": [{"epochs": 1} | phase for phase in phases]}
    run = make_run(train=settings)
    train(run, make_dataset(), Normed)
    names = set(Normed().state_dict())
    frozen = [
        {name for name in names if name.startswith(("base.", "neck."))},
        {name for name in names if name.startswith(("base.", "neck.0."))},
        {name for name in names if name.startswith("base.1.")} | {"head.bias"},
    ]
    states = [weights(run, 4 * epoch) for epoch in (1, 2, 3, 4)]
    for before, after, still in zip(states, states[1:], frozen, strict=False):
        assert {name for name in names if torch.equal(before[name], after[name])} == still


@pytest.mark.parametrize("every", [1, 3])
def test_run_stopped_before_each_step_goes_on_as_if_never_stopped(
    make_run: MakeRun, make_dataset: MakeDataset, every: int
) -> None:
    folder = make_dataset()
    schedule = {"name": "plateau", "patience": 0, "monitor": "val/loss", "gamma": 0.5}
    settings = OF_PHASES | {
        "batch_size": 25,  # 4 steps an epoch
        "checkpoint_every_steps": every,
        "optimizer": {"lr": 1.0, "weight_decay": 0.01},
        "penalties": [{"parameters": "head.*", "l1": 0.01}],
        "schedule": schedule,
        "ema_decay": 0.8,
        "phases": [
            {"name": "head", "epochs": 3, "train": ["head.*"]},
            {"name": "all", "epochs": 2, "schedule": {"name": "cosine"}},
            {"name": "best", "epochs": 1, "from_layer": "neck", "start_from": "best"},
        ],
    }
    undisturbed, run = make_run(train=settings), make_run(name="stopped", train=settings)
    log = train(undisturbed, folder, Normed)
    assert len(set(curve(log, "epoch", "lr")[:3])) > 1, "there was a plateau"
    scores = curve(log, "epoch", "val/gap")[:5]
    assert max(scores) != scores[-1], "the best is not the last"
    for epoch in range(6):
        for step in range(4):
            stop_at(run, folder, epoch, step, Normed)
    resumed = train(run, folder, Normed)
    measured = {"rows_per_s", "input_wait_percent", "epoch_s", "time_s", "train/loss"}
    assert [{k: v for k, v in line.items() if k not in measured} for line in resumed] == [
        {k: v for k, v in line.items() if k not in measured} for line in log
    ]
    for event in ("step", "epoch"):  # a mean of losses is summed in another order
        np.testing.assert_allclose(curve(resumed, event), curve(log, event), rtol=1e-12)
    for file in ("model", "unaveraged", "optimizer"):
        ours, theirs = weights(run, 24, file), weights(undisturbed, 24, file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), file


@pytest.mark.parametrize("start_from", ["last", "best"])
def test_early_stopping_ends_a_phase_and_the_next_begins(
    make_run: MakeRun, make_dataset: MakeDataset, start_from: str
) -> None:
    settings = OF_PHASES | {
        "keep_best": 99,
        "early_stopping": {"patience": 2},
        "optimizer": {"lr": 3.0},  # so high that it gets worse at times
        "phases": [
            {"name": "wild", "epochs": 40},
            {"name": "still", "epochs": 40, "lr": 1e-12, "start_from": start_from},
        ],
    }
    run, folder = make_run(train=settings), make_dataset()
    log = train(run, folder, Plain)
    names, scores = curve(log, "epoch", "phase"), curve(log, "epoch", "val/gap")
    wild = names.count("wild")
    assert wild < 40
    assert names == ["wild"] * wild + ["still"] * (len(names) - wild)
    finest = max(range(wild), key=lambda epoch: scores[epoch])
    assert finest == wild - 3
    begun_with = STEPS * (wild if start_from == "last" else finest + 1)
    before, after = weights(run, begun_with), weights(run, STEPS * (wild + 1))
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    adam_steps = weights(run, STEPS * (wild + 1), "optimizer")["0.step"]
    assert adam_steps == begun_with + STEPS, "the optimiser goes on from the same place"
    assert train(run, folder, Plain) == log, "it stays finished"


def test_without_phases_no_line_has_one(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    log = train(make_run(train=TRAIN), make_dataset())
    assert not any({"phase", "trained_parameters", "train/penalty", "weight_decay"} & line.keys() for line in log)


def test_monitor_of_a_schedule_that_is_no_metric(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    settings = TRAIN | {"schedule": {"name": "plateau", "monitor": "val/los"}}
    with pytest.raises(ValueError, match=r"train\.schedule\.monitor='val/los' is not a metric.*val/gap.*val/loss"):
        train(make_run(train=settings), make_dataset())


# Names


def phase_of(**keys: Any) -> Train:
    return Train.model_validate({"phases": [{"name": "a", "epochs": 1} | keys]})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"base.0", "base.1", "neck.0", "neck.1", "head"}),
        ({"train": ["*.0.*", "head.*"]}, {"base.0", "neck.0", "head"}),
        ({"freeze": ["base.*"]}, {"neck.0", "neck.1", "head"}),
        ({"from_layer": "neck"}, {"neck.0", "neck.1", "head"}),
        ({"from_layer": "neck.1"}, {"neck.1", "head"}),
    ],
)
def test_what_a_phase_trains(keys: dict[str, Any], expected: set[str]) -> None:
    train = phase_of(**keys)
    check_patterns(train, Normed())
    trained = trained_parameters(train.phases[0], Normed())
    assert trained == {f"{module}.{kind}" for module in expected for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (phase_of(train=["haed.*"]), ["train.phases.0.train='haed.*'", "no parameter", "head.*"]),
        (phase_of(freeze=["base.*", "Head.*"]), ["train.phases.0.freeze='Head.*'", "head.*"]),
        (phase_of(freeze=["zzz"]), ["choose from base.*, neck.*, head.*"]),
        (phase_of(from_layer="nek"), ["train.phases.0.from_layer='nek' is no module", "near it are neck"]),
        (phase_of(from_layer="neck.2"), ["train.phases.0.from_layer='neck.2'", "neck.0"]),  # dropout
        (phase_of(freeze=["*"]), ["train.phases.0 ('a') trains no parameter"]),
        (Train.model_validate({"optimizer": {"layer_lr": {"bas.*": 2}}}), ["layer_lr='bas.*'", "base.*"]),
        (Train.model_validate({"optimizer": {"no_weight_decay": ["*.bais"]}}), ["no_weight_decay='*.bais'", ".bias"]),
        (
            Train.model_validate({"penalties": [{"parameters": "head.wieght", "l1": 1}]}),
            ["train.penalties.0.parameters='head.wieght'", "head.weight"],
        ),
    ],
)
def test_name_that_is_not_there(train: Train, words: list[str]) -> None:
    with torch.device("meta"):
        model = Normed()
    with pytest.raises(ValueError, match=r".") as caught:
        check_patterns(train, model)
    for word in words:
        assert word in str(caught.value)


def test_run_with_a_wrong_name_stops_before_it_trains(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    run = make_run(train={"phases": [{"name": "a", "epochs": 1, "freeze": ["convolution.*"]}]})
    with pytest.raises(ValueError, match=r"train\.phases\.0\.freeze='convolution\.\*' names no parameter"):
        train(run, make_dataset())
    assert checkpoint.last(run.run_dir) is None


def test_batch_norm_is_frozen_with_its_parameters_or_with_what_is_around_it() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(3, affine=False),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False)),
        nn.BatchNorm1d(3),
        nn.Linear(3, 3),
    )
    assert frozen_norms(model) == []
    model[1].requires_grad_(False)
    assert frozen_norms(model) == [model[1][1]]
    model[2].weight.requires_grad_(False)
    assert frozen_norms(model) == [model[1][1]]
    model[2].bias.requires_grad_(False)
    assert frozen_norms(model) == [model[1][1], model[2]]
    model[3].requires_grad_(False)
    assert frozen_norms(model) == [model[0], model[1][1], model[2]]


def test_parameters_that_a_model_fixes_itself_are_never_trained(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    def model() -> nn.Module:
        made = Plain()
        made.base.requires_grad_(False)
        return made

    run = make_run(train=TRAIN | {"epochs": 1})
    train(run, make_dataset(), model)
    torch.manual_seed(run.seed)
    first, last = model().state_dict(), weights(run, STEPS)
    assert {name for name in first if torch.equal(first[name], last[name])} == {"base.weight", "base.bias"}
