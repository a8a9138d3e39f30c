"""A run that has begun needs the weights that it began with no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from image_runs import image_run, prepared_folder, untrained_folder, write_corpus

from mmray import config, prepared
from mmray.training import checkpoint, feed, run_folder, trained
from mmray.training.context import Context
from mmray.training.loop import fit


def train(run: config.Run, data: Path) -> None:
    info = prepared.read_info(data)
    context = Context(run_folder.open_run(run, info))
    task = trained.to_train(run, info, context.run_dir)
    fit(run, task, *feed.tables(run, task, data, context), context)


def test_training_goes_on_without_the_weights_that_it_began_with(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    model = {"name": "resnet32_cifar"}
    first = image_run(tmp_path, name="first", model=model)
    data = prepared_folder(first)
    untrained_folder(first, data)
    weights = checkpoint.folder_of(first.run_dir, 1) / "model.safetensors"

    def run_of(epochs: int) -> config.Run:
        return image_run(
            tmp_path,
            name="second",
            model=model | {"pretrained": str(weights)},
            train={"epochs": epochs, "batch_size": 8},
        )

    train(run_of(1), data)
    weights.unlink()
    train(run_of(2), data)
    last = checkpoint.last(run_of(2).run_dir)
    assert last is not None
    assert last.epoch == 2
    with pytest.raises(ValueError, match="safetensors"):
        train(run_of(1).model_copy(update={"name": "third"}), data)
