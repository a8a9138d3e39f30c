"""The logistic baseline against hand computation and float64."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from mmray.models import logistic


def test_forward_and_loss_by_hand() -> None:
    model = logistic.Config(l2_penalty=0.5).build(2, 2)
    with torch.no_grad():
        model.linear.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        model.linear.bias.copy_(torch.tensor([math.log(3) - 1, 0.0]))
    x = torch.tensor([[1.0, 0.0]])
    assert torch.sigmoid(model(x)).flatten().tolist() == pytest.approx([0.75, 0.5], rel=1e-6)
    loss = model.loss(x, torch.tensor([[True, False]]))
    assert loss.item() == pytest.approx(-math.log(0.75) - math.log(0.5) + 0.25 * (1 + 4), rel=1e-6)


def test_gradients_equal_the_closed_form() -> None:
    torch.manual_seed(0)
    model = logistic.Config(l2_penalty=1e-2).build(5, 7)
    x, labels = torch.randn(11, 5), torch.rand(11, 7) < 0.3
    model.loss(x, labels).backward()
    error = (torch.sigmoid(model(x).detach()) - labels.float()).double() / 11
    expected = error.T @ x.double() + 1e-2 * model.linear.weight.detach().double()
    torch.testing.assert_close(model.linear.weight.grad.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(model.linear.bias.grad.double(), error.sum(dim=0), rtol=1e-5, atol=1e-7)


def test_extremes_autocast_and_meta_device() -> None:
    model = logistic.Config().build(5, 7)
    x, labels = torch.randn(3, 5) * 1e4, torch.ones(3, 7, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(x, labels)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
    with torch.device("meta"):
        assert logistic.Config().build(1152, 4716)(torch.empty(2, 1152)).shape == (2, 4716)


def test_state_dict_round_trip() -> None:
    one, other, x = logistic.Config().build(5, 7), logistic.Config().build(5, 7), torch.randn(3, 5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_config_refuses_nonsense() -> None:
    for wrong in ({"l2_penalty": -1}, {"num_experts": 2}):
        with pytest.raises(ValidationError):
            logistic.Config(**wrong)
