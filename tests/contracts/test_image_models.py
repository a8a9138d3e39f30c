"""What every model of images promises; a new one is found by its file and held to the same."""

from __future__ import annotations

import functools
from pathlib import Path

import model_checks as checks
import pytest
import torch
import torch.nn.functional as F
from model_checks import one_thread  # noqa: F401  (for every test here)
from torch import Tensor, nn

from mmray import lookup
from mmray.models._vision import Classifier

pytestmark = pytest.mark.parametrize("name", checks.taking("image"))

SIZE, NUM_CLASSES = (75, 80), 2


def build(name: str, seed: int = 0) -> Classifier:
    model = checks.build(name, SIZE, NUM_CLASSES, seed=seed)
    assert isinstance(model, Classifier)
    return model


@functools.cache
def in_use(name: str) -> Classifier:
    """A model in eval mode whose statistics are those of two batches; the tests leave it as it is."""
    model = build(name).train()
    with torch.no_grad():
        for seed in (7, 8):
            model(images(4, seed))
    return model.eval()


def images(rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    checks.check_config(name)
    assert lookup.load("model", name).Config().pretrained is False


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    checks.check_seeded(lambda seed: build(name, seed).state_dict())


@torch.no_grad()
def test_logits_and_embedding_are_float32_with_and_without_autocast(name: str) -> None:
    model, x = in_use(name), images()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        embedding = model.embed(x)
    assert embedding.dtype == torch.float32
    assert embedding.shape == (2, model.embedding_size)
    rounded = checks.check_autocast(model, lambda model: model(x), atol=0.05)
    for logits in (rounded, model(x)):
        assert logits.dtype == torch.float32
        assert logits.shape == (2, NUM_CLASSES)
        assert torch.isfinite(logits).all()


@torch.no_grad()
def test_embedding_is_what_the_classifier_reads(name: str) -> None:
    model, x = in_use(name), images()
    assert torch.equal(model.head.classifier(model.embed(x)), model(x))


def test_images_do_not_depend_on_one_another(name: str) -> None:
    checks.check_rows_apart(in_use(name), images(3), rtol=1e-4, atol=1e-5)


def test_parameters_are_those_of_the_backbone_and_of_the_head(name: str) -> None:
    parts = {key.partition(".")[0] for key, _ in in_use(name).named_parameters()}
    assert parts == {"backbone", "head"}


@torch.no_grad()
def test_feature_layer_gives_a_map(name: str) -> None:
    model, maps = in_use(name), []
    assert model.feature_layer is not None
    hook = model.get_submodule(model.feature_layer).register_forward_hook(lambda *args: maps.append(args[2]))
    model(images())
    hook.remove()
    (found,) = maps
    assert found.ndim == 4
    assert found.shape[0] == 2
    assert min(found.shape[2:]) > 1


def test_every_parameter_has_a_gradient(name: str) -> None:
    model = build(name).train()
    F.cross_entropy(model(images(4)), torch.tensor([0, 1, 1, 0])).backward()
    checks.check_gradients(model)
    reached = [key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert any(key.startswith("backbone.") for key in reached)
    assert any(key.startswith("head.") for key in reached)


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    x = images(1)
    checks.check_round_trip(in_use(name), build(name, seed=9), lambda model: model(x), tmp_path)


def test_builds_and_runs_on_the_meta_device(name: str) -> None:
    meta = checks.check_meta(lambda: build(name))
    with torch.device("meta"):
        assert meta.eval()(torch.empty(5, 3, *SIZE)).shape == (5, NUM_CLASSES)


def test_weights_are_not_looked_for_on_the_meta_device(name: str) -> None:
    config = lookup.load("model", name).Config(pretrained="/nowhere")
    with torch.device("meta"):
        meta: nn.Module = config.build(SIZE, NUM_CLASSES)
    assert all(p.is_meta for p in meta.parameters())
    with pytest.raises(ValueError, match=r"model.pretrained=/nowhere: no such file"):
        config.build(SIZE, NUM_CLASSES)


def test_no_pixel_and_no_class_are_refused(name: str) -> None:
    for size, num_classes in (((0, 80), 2), (SIZE, 0)):
        with pytest.raises(ValueError, match="a classifier needs at least 1 each"):
            lookup.load("model", name).Config().build(size, num_classes)
