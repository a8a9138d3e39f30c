"""A small run over images of four colours: corpus, prepared dataset and run folder, made without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmray import config, preparation, prepared
from mmray.tasks import build
from mmray.training import checkpoint, run_folder
from mmray.training.checkpoint import TrainState

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40), "yellow": (220, 210, 50)}
SIZE = (24, 32)
MODEL = {"name": "pets_cnn_multiclass", "channels": [4, 8, 8], "hidden": 16}


def write_corpus(folder: Path, images_a_class: int = 10) -> Path:
    """PNG files of noisy colours with a dark bar somewhere, of odd sizes, a folder a class."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images_a_class):
            height, width = rng.integers(20, 60, 2)
            pixels = rng.normal(colour, 25, (height, width, 3))
            start = rng.integers(width // 2)
            pixels[:, start : start + 6] = 20
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def image_run(folder: Path, **sections: Any) -> config.Run:
    """A run over `write_corpus(folder / "corpus")`, all of it in `folder`; arguments replace sections of it."""
    values: dict[str, Any] = {
        "name": "colours",
        "out": str(folder / "runs"),
        "task": "image_classification",
        "dataset": {
            "name": "image_folder", "path": str(folder / "corpus"), "image": {"size": list(SIZE)},
            "split": {"fractions": {"train": 0.6, "val": 0.2, "test": 0.2}},
        },
        "model": MODEL,
        "prepare": {"out": str(folder / "prepared")},
    }  # fmt: skip
    return config.from_dict(values | sections)


def prepared_folder(run: config.Run) -> Path:
    """The prepared dataset of a run."""
    plan = preparation.plan(run)
    if not plan.folder.exists():
        preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    return plan.folder


def untrained_folder(run: config.Run, data: Path) -> Path:
    """The run folder as training leaves it, but for the training; normalisation has seen a few batches."""
    info = prepared.read_info(data)
    task = build(run, info)
    torch.manual_seed(0)
    model = task.build_model()
    for _ in range(3):
        model(torch.randn(8, 3, *task.size))  # type: ignore[attr-defined]
    run_dir = run_folder.open_run(run, info)
    state = TrainState(epoch=1, step=1, monitored=[0.5], metrics={task.monitor: 0.5})
    checkpoint.save(run_dir, state, model, torch.optim.SGD(model.parameters(), lr=1.0))
    return run_dir
