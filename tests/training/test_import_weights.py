"""Weights that others have trained become a run folder like any other, or a message that says why they can't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mmray import config
from mmray.features.cfp import Settings
from mmray.tasks import build
from mmray.training import checkpoint, run_folder
from mmray.training.import_weights import import_weights

SMALL = {"name": "dense_aspp", "growth": 2, "skip_copies": 1, "dilations": [1, 2]}
THEIR_NAMES = {
    "encoder.0": "conv_d_1", "encoder.1": "conv_d_2", "decoder": "up_conv3_pitch", "refine": "up_conv2_pitch",
    "pitch": "up_conv1_pitch", "no_melody": "bottom_pitch",
}  # fmt: skip


def make_run(tmp_path: Path, model: dict[str, Any] = SMALL) -> config.Run:
    """A run over a corpus that isn't there."""
    return config.from_dict(
        {
            "name": "authors",
            "out": str(tmp_path / "runs"),
            "task": "melody_extraction",
            "dataset": {"name": "mir1k", "path": "/nowhere", "cfp": {"bins_per_octave": 12}},
            "model": model,
        }
    )


def published(run: config.Run) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A model, and its weights under the names that the authors of DenseASPP gave them."""
    torch.manual_seed(1)
    model = run.model.build(Settings(bins_per_octave=12).num_bins)  # type: ignore[attr-defined]
    model(torch.rand(2, 3, 64, 20))  # statistics other than those of a new model
    state = {}
    for key, value in model.state_dict().items():
        layer, part, tensor = key.rsplit(".", 2)
        state[f"{THEIR_NAMES[layer]}.{ {'norm': 0, 'conv': 1}[part] }.{tensor}"] = value
    return model.eval(), state


def write(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors", "best"])
def test_the_run_folder_is_that_of_a_trained_run(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path)
    model, state = published(run)
    run_dir = import_weights(run, write(state, tmp_path / name))
    assert run_dir == tmp_path / "runs" / "authors"
    assert run_folder.read_run(run_dir).to_dict() == run.to_dict()

    task = build(run_folder.read_run(run_dir), run_folder.read_info(run_dir))
    best = checkpoint.best(run_dir, task.monitor, task.maximise)
    assert (best.step, best.epoch, best.metrics) == (0, 0, {})
    ours = task.build_model()
    checkpoint.load_model(checkpoint.folder_of(run_dir, best.step), ours)
    x = torch.rand(1, 3, 64, 30)
    assert torch.equal(ours.eval()(x), model(x))

    facts = json.loads((run_dir / "environment.json").read_text())
    assert facts["imported_from"] == name
    assert facts["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["conv_flops_per_second"] == task.describe(model)["conv_flops_per_second"]
    info = run_folder.read_info(run_dir)
    assert (info.splits, info.rows_in, info.group_key) == ({}, 0, "group")
    assert str(tmp_path) not in (run_dir / "environment.json").read_text()


def test_a_run_folder_with_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    weights = write(published(run)[1], tmp_path / "best.pt")
    run_dir = import_weights(run, weights)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    with pytest.raises(ValueError, match=r"authors has a checkpoint already; choose another name"):
        import_weights(run, weights)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    """They are DenseASPP's, but not those of the run's model."""
    weights = write(published(make_run(tmp_path))[1], tmp_path / "best.pt")
    for model, words in (
        (SMALL | {"growth": 3}, r"encoder\.0\.conv\.weight: \(2, 3, 3, 3\) there, \(3, 3, 3, 3\) in this model"),
        (SMALL | {"dilations": [1, 2, 4]}, r"encoder\.2\.conv\.weight: not there"),
        ({"name": "segnet"}, "not the released weights of SegNet"),
    ):
        run = make_run(tmp_path, model)
        with pytest.raises(ValueError, match=rf"(?s)best\.pt.*{words}"):
            import_weights(run, weights)
    assert not (tmp_path / "runs" / "authors").exists()


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_is_no_state_dict_is_refused_and_never_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    _, state = published(run)
    tensor = torch.ones(2)
    trap = tmp_path / "sprung"
    no_tensors = "not a file of torch.save that holds tensors only"
    cases = {
        "missing.pt": (None, "no such file"),
        "text.pt": (b"weights", no_tensors),
        "empty.pt": (b"", no_tensors),
        "text.safetensors": (b"weights", "not a file of safetensors"),
        "module.pt": (torch.nn.Linear(2, 2), no_tensors),
        "trap.pt": ({"conv_d_1.1.weight": Trap(trap)}, no_tensors),
        "checkpoint.pt": ({"model": state, "epoch": 3}, "not a state dict: it must map names to tensors"),
        "numbers.pt": ({3: tensor}, "not a state dict"),
        "list.pt": ([tensor], "not a state dict"),
        "other.pt": ({"head.weight": tensor}, "not the released weights of DenseASPP"),
        "part.pt": ({k: v for k, v in state.items() if "bottom" not in k}, r"missing keys \['bottom_pitch"),
        "more.pt": (state | {"head.weight": tensor}, r"unexpected keys \['head.weight'\]"),
        "shape.pt": (state | {"conv_d_2.1.bias": tensor[:1]}, r"conv_d_2\.1\.bias is \(1,\), not \(2,\)"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            write(content, path)
        with pytest.raises(ValueError, match=words) as caught:
            import_weights(run, path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert not trap.exists()
    assert not run.run_dir.exists()


def test_a_model_without_published_weights_is_named(tmp_path: Path) -> None:
    values = make_run(tmp_path).to_dict() | {
        "task": "video_classification",
        "dataset": {"name": "youtube8m", "path": "/nowhere", "num_classes": 3, "level": "video"},
        "model": "logistic",
    }
    with pytest.raises(ValueError, match=r"model\.name=logistic has no published weights to import"):
        import_weights(config.from_dict(values), tmp_path / "best.pt")
