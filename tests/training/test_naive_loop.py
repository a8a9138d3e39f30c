"""Phases, penalties, rates of layers and averaged weights together, against a loop written out in plain float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import OF_PHASES, STEPS, MakeDataset, MakeRun, Plain, curve, train, train_in_processes, weights

from mmray import config, prepared
from mmray.prepared import tensor_column
from mmray.tasks import build
from mmray.training import feed
from mmray.training.context import Context

Tensors = dict[str, torch.Tensor]


def batches(run: config.Run, folder: Path, epoch: int, split: str = "train") -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows x (B, 5) and labels (B, 6) of each step, float64."""
    task = build(run, prepared.read_info(folder))
    train_tables, val_tables = feed.tables(run, task, folder, Context(run.run_dir))
    for table in train_tables(epoch, 0) if split == "train" else val_tables():
        x = np.concatenate([tensor_column(table, name) for name in ("a", "b")], axis=1)
        labels = np.zeros((len(x), 6))
        for row, classes in enumerate(table.column("labels").to_pylist()):
            labels[row, classes] = 1
        yield torch.tensor(x, dtype=torch.float64), torch.tensor(labels)


def loss_of(w: Tensors, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = (x @ w["base.weight"].T + w["base.bias"]).tanh() @ w["head.weight"].T + w["head.bias"]
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(x)


def update(name: str, w: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], lr: float, decay: float) -> None:
    """One step of SGD with momentum or of AdamW for one tensor, as their papers have it."""
    if name == "sgd":
        grad = grad + decay * w
        state["m"] = 0.9 * state["m"] + grad if state else grad
        w -= lr * state["m"]
        return
    w *= 1 - lr * decay
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * grad
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * grad**2
    w -= lr * state["m"] / (1 - 0.9**t) / ((state["v"] / (1 - 0.999**t)).sqrt() + 1e-8)


HEAD, BASE = {"head.weight", "head.bias"}, {"base.weight", "base.bias"}
SETTINGS: dict[str, Any] = {
    "phases": [
        {
            "name": "head",
            "epochs": 2,
            "train": ["head.*"],
            "lr": 0.02,
            "schedule": {"name": "step", "every_epochs": 1, "gamma": 0.5, "weight_decay_gamma": 2},
        },
        {"name": "all", "epochs": 1, "from_layer": "base"},
        {
            "name": "no head.weight",
            "epochs": 1,
            "freeze": ["head.w*"],
            "schedule": {"name": "cosine", "warmup_steps": 3},
        },
        {"name": "again", "epochs": 1},
    ],
    "penalties": [{"parameters": "head.weight", "l1": 1e-3, "l2": 1e-2}, {"parameters": "base.*", "l2": 3e-3}],
    "ema_decay": 0.9,
    "keep_best": 9,
}
OPTIMIZER = {
    "lr": 0.01,
    "weight_decay": 0.1,
    "momentum": 0.9,
    "layer_lr": {"base.*": 0.5},
    "no_weight_decay": ["*.bias"],
}
# What it means: epochs, what is trained, learning rate and weight decay after t steps of the phase.
MEANT: list[tuple[int, set[str], Callable[[int], float], Callable[[int], float]]] = [
    (2, HEAD, lambda t: 0.02 * 0.5 ** (t // STEPS), lambda t: 0.1 * 2 ** (t // STEPS)),
    (1, HEAD | BASE, lambda t: 0.01, lambda t: 0.1),
    (
        1,
        BASE | {"head.bias"},
        lambda t: 0.01 * (t + 1) / 3 if t < 3 else 0.005 * (1 + math.cos(math.pi * (t - 3) / (STEPS - 3))),
        lambda t: 0.1,
    ),
    (1, HEAD | BASE, lambda t: 0.01, lambda t: 0.1),
]


def naive(run: config.Run, folder: Path, optimizer: str) -> Iterator[tuple[list[float], Tensors, Tensors]]:
    """The losses of each epoch, and the weights and the averaged weights after it."""
    torch.manual_seed(run.seed)
    w = {name: parameter.detach().double() for name, parameter in Plain().named_parameters()}
    states: dict[str, dict[str, Any]] = {name: {} for name in w}
    epoch = 0
    for epochs, trained, lr, decay in MEANT:
        averaged = {name: value.clone() for name, value in w.items()}
        states = {name: state if name in trained else {} for name, state in states.items()}
        t = 0
        for _ in range(epochs):
            losses = []
            for x, labels in batches(run, folder, epoch):
                variables = {name: value.clone().requires_grad_() for name, value in w.items()}
                loss = loss_of(variables, x, labels)
                loss.backward()
                losses.append(loss.item())
                for name in sorted(trained):
                    grad = variables[name].grad
                    assert grad is not None
                    if name == "head.weight":
                        grad = grad + 1e-3 * w[name].sign() + 2e-2 * w[name]
                    if name in BASE:
                        grad = grad + 6e-3 * w[name]
                    factor, kept = (0.5 if name in BASE else 1.0), (0.0 if name.endswith("bias") else decay(t))
                    update(optimizer, w[name], grad, states[name], factor * lr(t), kept)
                t += 1
                d = min(0.9, (1 + t) / (10 + t))
                averaged = {name: d * averaged[name] + (1 - d) * w[name] for name in w}
            epoch += 1
            yield losses, {name: value.clone() for name, value in w.items()}, averaged
        w = {name: value.clone() for name, value in averaged.items()}  # a phase begins with what predicts


def close(found: Tensors, expected: Tensors) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("optimizer", "accumulate"), [("sgd", 1), ("adamw", 4)])
def test_weights_are_those_of_a_naive_loop(
    make_run: MakeRun, make_dataset: MakeDataset, optimizer: str, accumulate: int
) -> None:
    folder = make_dataset()
    settings = OF_PHASES | SETTINGS | {"accumulate": accumulate}
    run = make_run(train=settings | {"optimizer": OPTIMIZER | {"name": optimizer}})
    log = train(run, folder, Plain)
    lines = [line for line in log if line["event"] == "epoch"]
    for epoch, (losses, w, averaged) in enumerate(naive(run, folder, optimizer)):
        step = STEPS * (epoch + 1)
        assert curve(log)[step - STEPS : step] == pytest.approx(losses, rel=1e-4)
        assert lines[epoch]["train/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        close(weights(run, step, "unaveraged"), w)
        close(weights(run, step), averaged)
        trained = {0: HEAD, 1: HEAD, 3: BASE}.get(epoch, HEAD | BASE)
        penalty = 1e-3 * w["head.weight"].abs().sum() + 1e-2 * (w["head.weight"] ** 2).sum() if epoch != 3 else 0
        penalty += sum(3e-3 * (w[name] ** 2).sum() for name in trained & BASE)
        assert lines[epoch]["train/penalty"] == pytest.approx(float(penalty), rel=1e-3)
        # Validation has the averaged weights, and no penalty in its loss.
        validation = [(len(x), loss_of(averaged, x, labels)) for x, labels in batches(run, folder, 0, "val")]
        expected = sum(rows * loss for rows, loss in validation) / sum(rows for rows, _ in validation)
        assert lines[epoch]["val/loss"] == pytest.approx(float(expected), rel=1e-4)
    assert curve(log, "epoch", "phase") == ["head", "head", "all", "no head.weight", "again"]
    assert curve(log, "step", "phase")[STEPS * 2 - 1 : STEPS * 2 + 1] == ["head", "all"]
    assert curve(log, "epoch", "trained_parameters") == [48, 48, 90, 48, 90]
    meant = [(lr(t), decay(t)) for epochs, _, lr, decay in MEANT for t in range(epochs * STEPS)]
    assert curve(log, "step", "lr") == pytest.approx([lr for lr, _ in meant])
    decays = curve(log, "step", "weight_decay")
    assert decays[: 2 * STEPS] == pytest.approx([decay for _, decay in meant[: 2 * STEPS]])


def test_two_processes_follow_the_phases_of_one(make_run: MakeRun, make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Batches of 7 in 3 micro-batches: nothing divides by 2."""
    folder = make_dataset()
    settings = OF_PHASES | SETTINGS | {"batch_size": 7, "accumulate": 3}
    settings["phases"] = [*settings["phases"], {"name": "best", "epochs": 1, "lr": 1e-6, "start_from": "best"}]
    settings |= {"optimizer": OPTIMIZER}
    alone, two = make_run(train=settings), make_run(name="two", train=settings)
    expected = train(alone, folder, Plain)
    together = train_in_processes(two, folder, 2, tmp_path / "store", Plain)
    for event in ("step", "epoch"):
        np.testing.assert_allclose(curve(together, event), curve(expected, event), rtol=1e-4)
    for key in ("phase", "lr", "weight_decay", "trained_parameters", "train_rows", "val_rows"):
        assert curve(together, "epoch", key) == curve(expected, "epoch", key)
    np.testing.assert_allclose(curve(together, "epoch", "val/loss"), curve(expected, "epoch", "val/loss"), rtol=1e-4)
    for file in ("model", "unaveraged"):
        close(weights(two, 6 * 14, file), {k: v.double() for k, v in weights(alone, 6 * 14, file).items()})


@pytest.mark.slow
def test_compiled_model_follows_the_phases(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    settings = OF_PHASES | SETTINGS | {"optimizer": OPTIMIZER}
    expected = train(make_run(train=settings), folder, Plain)
    compiled = train(make_run(name="compiled", train=settings | {"compile": True}), folder, Plain)
    for event, key in (("step", "train/loss"), ("epoch", "val/loss")):
        np.testing.assert_allclose(curve(compiled, event, key), curve(expected, event, key), rtol=1e-4)
