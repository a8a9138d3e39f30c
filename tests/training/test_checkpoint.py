"""Checkpoints are whole, free of pickles, and of the model they are loaded into."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmray.training import checkpoint
from mmray.training.checkpoint import TrainState


def trained(width: int = 4) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(width, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_round_trip(tmp_path: Path) -> None:
    model, optimizer = trained()
    state = TrainState(epoch=1, step=3, monitored=[0.5], metrics={"val/gap": 0.5})
    folder = checkpoint.save(tmp_path, state, model, optimizer)
    assert checkpoint.last(tmp_path) == state
    fresh, fresh_optimizer = trained()
    checkpoint.load_model(folder, fresh)
    checkpoint.load_optimizer(folder, fresh_optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)
    before, after = optimizer.state_dict()["state"], fresh_optimizer.state_dict()["state"]
    for number in before:
        for key in before[number]:
            assert torch.equal(before[number][key], after[number][key])


def test_averaged_weights_predict_and_the_others_go_on(tmp_path: Path) -> None:
    model, optimizer = trained()
    averaged = {name: torch.full_like(parameter, 7.0) for name, parameter in model.named_parameters()}
    folder = checkpoint.save(tmp_path, TrainState(step=3), model, optimizer, averaged)
    fresh, _ = trained()
    checkpoint.load_model(folder, fresh)
    assert all(torch.equal(parameter, averaged[name]) for name, parameter in fresh.named_parameters())
    checkpoint.load_unaveraged(folder, fresh)
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, TrainState(step=3, monitored=[0.5]), *trained())
    state = json.loads((folder / "state.json").read_text())
    del state["watched"]
    (folder / "state.json").write_text(json.dumps(state))
    assert checkpoint.last(tmp_path) == TrainState(step=3, monitored=[0.5])


def test_no_file_of_it_is_a_pickle(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, TrainState(step=1), *trained())
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert all(b"\x80\x04" not in p.read_bytes()[:16] for p in folder.iterdir())


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, TrainState(step=1), *trained(width=4))
    with pytest.raises(ValueError, match=r"of another model:\n  weight: \(2, 4\) there, \(2, 5\) in this model"):
        checkpoint.load_model(folder, torch.nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"bias: only there"):
        checkpoint.load_model(folder, torch.nn.Linear(4, 2, bias=False))


def test_checkpoint_that_was_not_finished_is_not_seen(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, TrainState(step=1), *trained())
    (tmp_path / "checkpoints" / ".writing-x").mkdir()
    (tmp_path / "checkpoints" / ".writing-x" / "state.json").write_text("{")
    assert [state.step for state in checkpoint.list_states(tmp_path)] == [1]


def test_no_checkpoint_is_named(tmp_path: Path) -> None:
    assert checkpoint.last(tmp_path) is None
    with pytest.raises(ValueError, match="has no checkpoint; train it first"):
        checkpoint.best(tmp_path, "val/gap", maximise=True)


def test_best_of_a_loss_is_the_lowest(tmp_path: Path) -> None:
    for step, loss in enumerate([0.3, 0.1, 0.2], 1):
        checkpoint.save(tmp_path, TrainState(step=step, metrics={"val/loss": loss}), *trained())
    assert checkpoint.best(tmp_path, "val/loss", maximise=False).step == 2
    checkpoint.prune(tmp_path, "val/loss", maximise=False, keep_best=1)
    assert [state.step for state in checkpoint.list_states(tmp_path)] == [2, 3]
