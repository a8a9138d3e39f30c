"""A trained model, ready to predict."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mmray import config
from mmray.tasks import Task, build
from mmray.training import checkpoint, run_folder


def load(run: config.Run, run_dir: Path, step: int) -> tuple[Task, nn.Module]:
    """The task of a run and its model as it was after `step` steps, on the CPU, in evaluation mode.

    The weights that training began with are not asked for again: they may lie on another machine, or in a hub.
    """
    if "pretrained" in type(run.model).model_fields:
        run = run.model_copy(update={"model": run.model.model_copy(update={"pretrained": False})})
    task = build(run, run_folder.read_info(run_dir))
    model = task.build_model()
    checkpoint.load_model(checkpoint.folder_of(run_dir, step), model)
    return task, model.eval()
