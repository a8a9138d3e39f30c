"""A soup: the mean of the weights of runs of one architecture, as a run folder that predicts like any other.

Running statistics of batch norm are averaged as the weights are; they are not those of the averaged network, which
nobody ran. Where that matters, go on training the soup for an epoch. M. Wortsman et al., "Model soups", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mmray import config
from mmray.files import locked
from mmray.tasks import build, monitored
from mmray.training import checkpoint, run_folder
from mmray.training.checkpoint import TrainState


def make_soup(run: config.Run, members: Sequence[Path]) -> Path:
    """Make the run folder of `run` with the mean of the best checkpoints of `members`; return the folder.

    ValueError where they are not of one architecture over one data set, or the folder has a checkpoint already.
    """
    first = members[0]
    info = run_folder.read_info(first)
    run_dir = run.run_dir
    with locked(run_dir.with_name(f".{run_dir.name}.lock"), f"making {run_dir}", wait=False):
        if run_folder.is_begun(run_dir):
            raise ValueError(f"{run_dir} has a checkpoint already; choose another --out, or remove it")
        task = build(run, info)
        models = []
        for member in members:
            own = run_folder.read_run(member)
            _require_alike(first, run, info.class_names, member, own, run_folder.read_info(member).class_names)
            models.append(task.build_model())
            best = checkpoint.best(member, *monitored(own, task))
            checkpoint.load_model(checkpoint.folder_of(member, best.step), models[-1])
        mean = mean_state([model.state_dict() for model in models])
        model = models[0]
        model.load_state_dict(mean)
        run_folder.open_run(run, info)
        num_parameters = sum(p.numel() for p in model.parameters())
        run_folder.write_environment(run_dir, num_parameters=num_parameters, **task.describe(model))
        checkpoint.save(run_dir, TrainState(), model, torch.optim.SGD(model.parameters(), lr=1.0))
    return run_dir


def mean_state(states: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, in float64 and rounded to the tensor's own type; of whole numbers the first stays."""
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def _require_alike(
    first: Path, run: config.Run, classes: list[str], member: Path, own: config.Run, own_classes: list[str]
) -> None:
    ours, theirs = run.to_dict(), own.to_dict()
    for key in sorted(ours["model"].keys() | theirs["model"].keys()):
        if ours["model"].get(key) != theirs["model"].get(key):
            raise ValueError(
                f"model.{key} is {ours['model'].get(key)!r} for {first} and {theirs['model'].get(key)!r} for {member}; "
                "only weights of one architecture have a mean: combine predictions, --method mean"
            )
    if own_classes != classes:
        raise ValueError(
            f"{first} and {member} have other lists of classes; only weights of one architecture have a mean"
        )
