"""Exported models: what the file predicts, by onnxruntime and torch.export, is what preparation and the run predict."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from image_runs import COLOURS, MODEL, image_run, prepared_folder, untrained_folder, write_corpus
from numpy.typing import NDArray
from safetensors.torch import load_file, safe_open

from mmray import config
from mmray.features import images, traced_resize
from mmray.tasks import Batch
from mmray.training import export as exporting
from mmray.training import trained
from mmray.training.export import export


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    write_corpus(root / "corpus")
    return root


def exported_run(root: Path, name: str, model: dict[str, Any] = MODEL, **task: Any) -> tuple[config.Run, Path, Path]:
    run = image_run(root, name=name, model=model, task={"name": "image_classification", **task})
    data = prepared_folder(run)
    return run, untrained_folder(run, data), data


def pictures(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def expected(run: config.Run, run_dir: Path, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """By the way that an image takes otherwise: resized by torchvision at preparation, then evaluated."""
    task, model = trained.load(run, run_dir, 1)
    resized = images.resize(torch.from_numpy(picture).permute(2, 0, 1), task.stored)  # type: ignore[attr-defined]
    batch = Batch(1, {"images": resized.permute(1, 2, 0)[None].contiguous()})
    with torch.inference_mode():
        return np.asarray(task.evaluate(model, batch)[0][0])


def by_onnx(path: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path)
    return lambda rows: np.asarray(session.run(None, {"images": rows})[0])


def by_torch(path: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    module = torch.export.load(path).module()
    return lambda rows: np.asarray(module(torch.from_numpy(rows)).detach())


READERS = {"onnx": by_onnx, "torch": by_torch}


@dataclass(frozen=True)
class Written:
    """What an export has written, of a run whose images are cropped and normalised by the data set."""

    run: config.Run
    run_dir: Path
    found: exporting.Exported
    format: str


@pytest.fixture(scope="module", params=["onnx", "torch"])
def written(request: pytest.FixtureRequest, corpus: Path) -> Written:
    run, run_dir, data = exported_run(corpus, f"written-{request.param}", crop=[22, 28], normalize="dataset")
    return Written(run, run_dir, export(run_dir, data, request.param), request.param)


def test_the_file_predicts_images_of_any_size_as_the_run_does(written: Written) -> None:
    predict = READERS[written.format](written.found.files[0])
    for picture in pictures((24, 32), (41, 20), (9, 70), (120, 90)):
        wanted = expected(written.run, written.run_dir, picture)
        # Resized pixels may differ by a level of 255: torchvision's weights on 8 bits are rounded.
        np.testing.assert_allclose(predict(picture[None])[0], wanted, atol=1e-6 if len(picture) == 24 else 2e-3)
    several = np.stack(pictures((30, 30), (30, 30), (30, 30)))
    np.testing.assert_allclose(predict(several), [predict(one[None])[0] for one in several], atol=1e-6)
    found = written.found
    assert (found.rows, found.split) == (8, "test")
    assert max(found.stored_difference, found.resized_difference) < 1e-5


def test_what_stands_beside_it_and_inside(written: Written) -> None:
    folder, suffix = written.run_dir / "export", exporting.SUFFIXES[written.format]  # type: ignore[index]
    stem = folder / written.run.name
    assert sorted(folder.iterdir()) == sorted(stem.with_suffix(s) for s in (".json", suffix, ".safetensors"))
    assert set(written.found.files) == set(folder.iterdir())
    facts = json.loads(stem.with_suffix(".json").read_text())
    assert facts["class_names"] == sorted(COLOURS)
    task, model = trained.load(written.run, written.run_dir, 1)
    sums = task.info.split("train").sums["channel_mean"]
    assert facts["preprocessing"]["mean"] == pytest.approx([total / 24 for total in sums])
    assert facts["preprocessing"]["resize"] == {"size": [24, 32], "resize": "stretch", "interpolation": "bilinear"}
    assert facts["preprocessing"]["crop"] == [22, 28]
    if written.format == "onnx":
        within = {entry.key: entry.value for entry in onnx.load(stem.with_suffix(".onnx")).metadata_props}
        assert json.loads(within["class_names"]) == facts["class_names"]
        assert json.loads(within["preprocessing"]) == facts["preprocessing"]
    else:
        inside = {"mmray.json": ""}
        torch.export.load(stem.with_suffix(".pt2"), extra_files=inside)
        assert json.loads(inside["mmray.json"]) == facts
    tensors = load_file(stem.with_suffix(".safetensors"))
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())
    with safe_open(stem.with_suffix(".safetensors"), "pt") as file:
        assert json.loads(file.metadata()["mmray"]) == facts


@pytest.mark.parametrize(
    ("resize", "interpolation"), [("stretch", "bilinear"), ("crop", "bilinear"), ("pad", "bicubic")]
)
def test_resizing_in_the_graph_is_preparation_s_to_a_level(resize: Any, interpolation: Any) -> None:
    settings = images.Settings(size=(31, 44), resize=resize, interpolation=interpolation)
    for picture in pictures((31, 44), (62, 88), (100, 37), (20, 300), (7, 5), (1, 1)):
        ours = traced_resize.resize(torch.from_numpy(picture)[None], settings)[0]
        theirs = images.resize(torch.from_numpy(picture).permute(2, 0, 1), settings)
        levels = (ours - theirs).abs()
        assert levels.max() <= 1
        assert (levels > 0).float().mean() < 0.02
        if picture.shape[:2] == (31, 44):
            assert not levels.any()


@pytest.mark.parametrize(
    "model",
    [
        {"name": "timm", "architecture": "vit_tiny_patch16_224"},
        {"name": "timm", "architecture": "efficientnet_b0"},
        {"name": "torchvision", "architecture": "vit_b_32"},
        {"name": "inception_v3"},
    ],
    ids=lambda model: str(model.get("architecture", model["name"])),
)
@pytest.mark.slow
def test_other_models(corpus: Path, model: dict[str, Any]) -> None:
    _, run_dir, data = exported_run_at(corpus, model)
    for format in ("onnx", "torch"):
        found = export(run_dir, data, format)
        assert max(found.stored_difference, found.resized_difference) < 1e-5


def exported_run_at(root: Path, model: dict[str, Any]) -> tuple[config.Run, Path, Path]:
    """At a size that every model takes."""
    dataset = image_run(root).to_dict()["dataset"]
    dataset["image"]["size"] = [96, 96]
    run = image_run(root, name=f"at-96-{model.get('architecture', model['name'])}", model=model, dataset=dataset)
    data = prepared_folder(run)
    return run, untrained_folder(run, data), data


def test_a_file_that_predicts_otherwise_is_not_written(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_dir, data = exported_run(corpus, "otherwise")
    monkeypatch.setattr(traced_resize, "_levels", lambda x: x * 0.9)
    with pytest.raises(
        ValueError, match=r"otherwise.pt2 was not written: it predicts probabilities up to .* from thos"
    ):
        export(run_dir, data, "torch")
    assert not list((run_dir / "export").iterdir())


def test_what_can_t_be_exported(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run_dir, data = exported_run(corpus, "cannot")
    with pytest.raises(ValueError, match=r"colours\.pt: a file of format torch ends in \.pt2"):
        export(run_dir, data, "torch", tmp_path / "colours.pt")
    with pytest.raises(ValueError, match="is not a run folder"):
        export(tmp_path, data, "torch")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r'--format onnx needs more packages: pip install "mmray\[onnx\]"'):
        export(run_dir, data, "onnx")
