"""A trained model, ready to predict or to be trained further."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mmray import config
from mmray.schema import DatasetInfo
from mmray.tasks import Task, build
from mmray.training import checkpoint, run_folder


def load(run: config.Run, run_dir: Path, step: int) -> tuple[Task, nn.Module]:
    """The task of a run and its model as it was after `step` steps, on the CPU, in evaluation mode."""
    task = build(begun(run), run_folder.read_info(run_dir))
    model = task.build_model()
    checkpoint.load_model(checkpoint.folder_of(run_dir, step), model)
    return task, model.eval()


def to_train(run: config.Run, info: DatasetInfo, run_dir: Path) -> Task:
    """The task of a run that begins to train in `run_dir`, or goes on there."""
    return build(begun(run) if checkpoint.last(run_dir) else run, info)


def begun(run: config.Run) -> config.Run:
    """The run, but for the weights that its training began with: they may lie on another machine, or in a hub.

    Whoever has a checkpoint of it needs them no more.
    """
    if "pretrained" not in type(run.model).model_fields:
        return run
    return run.model_copy(update={"model": run.model.model_copy(update={"pretrained": False})})
