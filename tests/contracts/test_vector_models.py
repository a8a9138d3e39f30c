"""What every classifier of vectors promises; a new one is found by its file and held to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmray import lookup
from mmray.losses import binary_cross_entropy, multilabel_loss

NAMES = [name for name in lookup.names("model") if lookup.load("model", name).Config.takes == "vectors"]
pytestmark = pytest.mark.parametrize("name", NAMES)

INPUT_SIZE, NUM_CLASSES, ROWS = 7, 5, 11


def build(name: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A small model with every parameter away from 0, so that none is without effect by chance."""
    torch.manual_seed(seed)
    model: nn.Module = lookup.load("model", name).Config(**settings).build(INPUT_SIZE, NUM_CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, INPUT_SIZE, generator=generator).to(dtype)
    return x, torch.rand(ROWS, NUM_CLASSES, generator=generator) < 0.4


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    Config = lookup.load("model", name).Config
    assert Config().name == name
    assert Config.model_validate({"name": name}) == Config()
    with pytest.raises(ValidationError, match="name"):
        Config(name="another")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config(no_such_key=1)
    with pytest.raises(ValidationError, match="frozen"):
        Config().inputs = ["mean_rgb"]


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    Config = lookup.load("model", name).Config

    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        state: dict[str, Tensor] = Config().build(INPUT_SIZE, NUM_CLASSES).state_dict()
        return state

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_parameters_are_float32_and_logits_have_a_row_and_a_class(name: str) -> None:
    model, (x, _) = build(name), batch()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    logits = model(x)
    assert logits.shape == (ROWS, NUM_CLASSES)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert model(x[:0]).shape == (0, NUM_CLASSES)


def test_rows_do_not_depend_on_one_another(name: str) -> None:
    model, (x, _) = build(name).eval(), batch()
    together = model(x)
    for row in range(ROWS):
        torch.testing.assert_close(model(x[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-6)


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    model, other, (x, _) = build(name), build(name, seed=9), batch()
    assert not torch.equal(model(x), other(x))
    path = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    other.load_state_dict(load_file(path))
    assert torch.equal(model.eval()(x), other.eval()(x))


@pytest.mark.parametrize("way", ["loss", "logits"])
def test_every_parameter_has_a_gradient(name: str, way: str) -> None:
    model, (x, labels) = build(name), batch()
    loss = multilabel_loss(model, x, labels) if way == "loss" else binary_cross_entropy(model(x), labels)
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.shape == parameter.shape, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


def l2_of_weights(model: nn.Module) -> float:
    """Half the sum of the squares of all parameters but biases, in float64."""
    return sum(float(p.detach().double().square().sum()) / 2 for k, p in model.named_parameters() if "bias" not in k)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_loss_is_the_cross_entropy_of_the_logits_and_the_penalty(name: str, penalty: float) -> None:
    """The penalty is `l2_penalty`, where a model has one: half of it times the sum of the squared weights."""
    if penalty and "l2_penalty" not in lookup.load("model", name).Config.model_fields:
        pytest.skip("has no penalty")
    model, (x, labels) = build(name, **({"l2_penalty": penalty} if penalty else {})), batch()
    logits = model(x).detach()
    by_hand = -nn.functional.logsigmoid(torch.where(labels, logits, -logits).double()).sum() / ROWS
    assert float(binary_cross_entropy(logits, labels)) == pytest.approx(float(by_hand), rel=1e-6)
    expected = float(by_hand) + penalty * l2_of_weights(model)
    loss = multilabel_loss(model, x, labels).detach()
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_loss_is_a_mean_over_rows(name: str) -> None:
    """Twice the same rows have the same loss and gradients."""
    model, (x, labels) = build(name), batch()
    results = []
    for times in (1, 2):
        model.zero_grad()
        loss = multilabel_loss(model, x.repeat(times, 1), labels.repeat(times, 1))
        loss.backward()
        results.append((float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_labels_of_another_shape_are_refused(name: str) -> None:
    model, (x, labels) = build(name), batch()
    with pytest.raises(ValueError, match=r"labels"):
        multilabel_loss(model, x, labels[:, :-1])


def test_autocast_leaves_logits_and_loss_close(name: str) -> None:
    model, (x, labels) = build(name), batch()
    expected, exact = float(multilabel_loss(model, x, labels).detach()), model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = multilabel_loss(model, x, labels), model(x)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=2e-2)
    torch.testing.assert_close(logits.detach().float(), exact, rtol=0.1, atol=0.1)


def test_builds_on_the_meta_device(name: str) -> None:
    Config = lookup.load("model", name).Config
    with torch.device("meta"):
        model = Config().build(1152, 4716)
        assert model(torch.empty(3, 1152)).shape == (3, 4716)
    assert all(p.is_meta for p in model.parameters())
    small = build(name)
    assert [k for k, _ in model.named_parameters()] == [k for k, _ in small.named_parameters()]
