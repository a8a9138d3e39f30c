"""Checkpoints: `checkpoints/step-00001200/` with three or four files, none of them a pickle.

    model.safetensors       the weights that predict: with `train.ema_decay` the averaged ones
    unaveraged.safetensors  with `train.ema_decay`: the parameters that training goes on from
    optimizer.safetensors   the optimiser's tensors, named "<parameter number>.<key>"
    state.json              where training stood: epoch, step, monitored metric

A checkpoint is written aside and renamed, in a store uploaded with state.json last: one that has it is whole. The last
one and the best are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from mmray.disk import room_for
from mmray.files import delete_folder, delete_leftovers, written_folder
from mmray.storage import fetched


class TrainState(BaseModel):
    """Where training stands: `epoch` and `step_in_epoch` are of the next step to do, `step` counts all done.

    `monitored` has the monitored metric of every finished epoch, from which follows which phase an epoch belongs to:
    see `mmray.training.optimisation.current_phase`. `watched` has those that plateau schedules name, in the same way,
    and `metrics` all metrics of these very weights.
    Within an epoch, `epoch_loss` sums the losses of its steps and `unlogged_loss` those of steps not logged yet.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    monitored: list[float] = []
    watched: dict[str, list[float]] = {}
    metrics: dict[str, float] = {}
    epoch_loss: float = 0.0
    unlogged_loss: float = 0.0


def save(
    run_dir: Path,
    state: TrainState,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    averaged: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint whole and return its folder. `averaged`: the parameters that predict, if not the model's.

    OSError that says how much is missing, where the disk is full.
    """
    final = folder_of(run_dir, state.step)
    final.parent.mkdir(parents=True, exist_ok=True)
    delete_leftovers(final.parent)
    files = {"model.safetensors": {**model.state_dict(), **(averaged or {})}}
    if averaged is not None:
        files["unaveraged.safetensors"] = dict(model.named_parameters())
    files["optimizer.safetensors"] = _optimizer_tensors(optimizer)
    num_bytes = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    with room_for(final.parent, num_bytes, f"the checkpoint of step {state.step:,}"), written_folder(final) as aside:
        for name, tensors in files.items():
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, aside / name)
        (aside / "state.json").write_text(state.model_dump_json(indent=2))
    return final


def folder_of(run_dir: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def list_states(run_dir: Path) -> list[TrainState]:
    """The states of all whole checkpoints, oldest first."""
    paths = sorted((run_dir / "checkpoints").glob("step-*/state.json"))
    return [TrainState.model_validate_json(path.read_text()) for path in paths]


def last(run_dir: Path) -> TrainState | None:
    """The state of the newest checkpoint, or None before the first."""
    states = list_states(run_dir)
    return states[-1] if states else None


def best(run_dir: Path, monitor: str, maximise: bool) -> TrainState:
    """The state of the checkpoint with the best monitored metric, the newest among equals; ValueError without one."""
    states = list_states(run_dir)
    if not states:
        raise ValueError(f"{run_dir} has no checkpoint; train it first: mmray train {run_dir / 'config.yaml'}")
    sign = 1 if maximise else -1
    return max(states, key=lambda s: (sign * s.metrics.get(monitor, -sign * float("inf")), s.step))


def prune(run_dir: Path, monitor: str, maximise: bool, keep_best: int) -> None:
    """Delete all checkpoints but the last and the `keep_best` best."""
    states = list_states(run_dir)
    sign = 1 if maximise else -1
    ranked = sorted((s for s in states if monitor in s.metrics), key=lambda s: (-sign * s.metrics[monitor], -s.step))
    keep = {s.step for s in ranked[:keep_best]} | {s.step for s in states[-1:]}
    for state in states:
        if state.step not in keep:
            delete_folder(folder_of(run_dir, state.step))


def load_model(folder: Path, model: torch.nn.Module) -> None:
    """Load the weights of a checkpoint; ValueError naming every parameter that does not fit."""
    load_tensors(model, _load(folder / "model.safetensors"), f"{folder} is a checkpoint")


def load_unaveraged(folder: Path, model: torch.nn.Module) -> None:
    """Give a model whose weights `load_model` has loaded the parameters that training goes on from."""
    model.load_state_dict(model.state_dict() | _load(folder / "unaveraged.safetensors"))


def load_tensors(model: torch.nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Load weights by their names; ValueError, which says `what` they are, naming every parameter that does not fit."""
    expected = model.state_dict()
    wrong = [f"{name}: only there" for name in sorted(tensors.keys() - expected.keys())]
    wrong += [f"{name}: not there" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [
        f"{name}: {tuple(tensors[name].shape)} there, {tuple(expected[name].shape)} in this model"
        for name in sorted(tensors.keys() & expected.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(f"{what} of another model:\n  " + "\n  ".join(wrong))
    model.load_state_dict(tensors)


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimiser's state of a checkpoint into `optimizer`, which keeps its own settings."""
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in _load(folder / "optimizer.safetensors").items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _load(path: Path) -> dict[str, torch.Tensor]:
    with fetched(path) as here:
        tensors: dict[str, torch.Tensor] = load_file(here)
    return tensors


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if value is not None:  # SGD without momentum keeps a None
                tensors[f"{number}.{key}"] = torch.as_tensor(value).contiguous()
    return tensors
