"""What every classifier of vectors promises; a new one is found by its file and held to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import model_checks as checks
import pytest
import torch
from torch import Tensor, nn

from mmray import lookup
from mmray.losses import binary_cross_entropy, multilabel_loss

pytestmark = pytest.mark.parametrize("name", checks.taking("vectors"))

INPUT_SIZE, NUM_CLASSES, ROWS = 7, 5, 11


def build(name: str, seed: int = 0, **settings: Any) -> nn.Module:
    """A small model with every parameter away from 0, so that none is without effect by chance."""
    model = checks.build(name, INPUT_SIZE, NUM_CLASSES, seed=seed, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, INPUT_SIZE, generator=generator).to(dtype)
    return x, torch.rand(ROWS, NUM_CLASSES, generator=generator) < 0.4


def test_config_has_the_name_of_its_module_and_no_other_key(name: str) -> None:
    checks.check_config(name)


def test_initial_weights_depend_on_the_global_generator_alone(name: str) -> None:
    checks.check_seeded(lambda seed: checks.build(name, INPUT_SIZE, NUM_CLASSES, seed=seed).state_dict())


def test_parameters_are_float32_and_logits_have_a_row_and_a_class(name: str) -> None:
    model, (x, _) = build(name), batch()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    logits = model(x)
    assert logits.shape == (ROWS, NUM_CLASSES)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert model(x[:0]).shape == (0, NUM_CLASSES)


def test_rows_do_not_depend_on_one_another(name: str) -> None:
    checks.check_rows_apart(build(name), batch()[0], rtol=1e-5, atol=1e-6)


def test_state_dict_comes_back_through_safetensors(name: str, tmp_path: Path) -> None:
    x, _ = batch()
    checks.check_round_trip(build(name), build(name, seed=9), lambda model: model(x), tmp_path)


@pytest.mark.parametrize("way", ["loss", "logits"])
def test_every_parameter_has_a_gradient(name: str, way: str) -> None:
    model, (x, labels) = build(name), batch()
    loss = multilabel_loss(model, labels, x) if way == "loss" else binary_cross_entropy(model(x), labels)
    loss.backward()
    checks.check_gradients(model, nonzero=True)


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
    loss = multilabel_loss(model, labels, x).detach()
    assert loss.shape == ()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_loss_is_a_mean_over_rows(name: str) -> None:
    """Twice the same rows have the same loss and gradients."""
    model, (x, labels) = build(name), batch()
    results = []
    for times in (1, 2):
        model.zero_grad()
        loss = multilabel_loss(model, labels.repeat(times, 1), x.repeat(times, 1))
        loss.backward()
        results.append((float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_labels_of_another_shape_are_refused(name: str) -> None:
    model, (x, labels) = build(name), batch()
    with pytest.raises(ValueError, match=r"labels"):
        multilabel_loss(model, labels[:, :-1], x)


def test_autocast_leaves_logits_and_loss_close(name: str) -> None:
    model, (x, labels) = build(name), batch()
    expected, exact = float(multilabel_loss(model, labels, x).detach()), model(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = multilabel_loss(model, labels, x), model(x)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(expected, rel=2e-2)
    torch.testing.assert_close(logits.detach().float(), exact, rtol=0.1, atol=0.1)


def test_builds_on_the_meta_device(name: str) -> None:
    checks.check_meta(lambda: build(name))
    with torch.device("meta"):
        assert checks.build(name, 1152, 4716)(torch.empty(3, 1152)).shape == (3, 4716)
