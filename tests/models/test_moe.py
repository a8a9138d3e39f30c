"""The mixture of experts against a plain float64 version, differentiated by autograd."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mmray.models import logistic, moe


def naive_log_probabilities(model: moe.MixtureOfExperts, x: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) in float64, class by class and expert by expert."""
    weight, bias, x = model.weight.double(), model.bias.double(), x.double()
    log_p, log_not_p = [], []
    for w, b in zip(weight, bias, strict=True):
        gates = torch.log_softmax(x @ w[: len(b) + 1].T, dim=1)
        experts = x @ w[len(b) + 1 :].T + b
        yes = [gates[:, k + 1] + torch.nn.functional.logsigmoid(experts[:, k]) for k in range(len(b))]
        no = [gates[:, k + 1] + torch.nn.functional.logsigmoid(-experts[:, k]) for k in range(len(b))]
        log_p.append(torch.stack(yes).logsumexp(dim=0))
        log_not_p.append(torch.stack([gates[:, 0], *no]).logsumexp(dim=0))
    return torch.stack(log_p, dim=1), torch.stack(log_not_p, dim=1)


def naive_loss(model: moe.MixtureOfExperts, x: Tensor, labels: Tensor) -> Tensor:
    log_p, log_not_p = naive_log_probabilities(model, x)
    penalty = model.l2_penalty / 2 * model.weight.double().square().sum()
    return -torch.where(labels, log_p, log_not_p).sum(dim=1).mean() + penalty


def make_model(num_experts: int, input_size: int = 12, num_classes: int = 23, l2_penalty: float = 1e-3):
    torch.manual_seed(num_experts)
    model = moe.Config(num_experts=num_experts, l2_penalty=l2_penalty).build(input_size, num_classes)
    with torch.no_grad():
        model.bias.normal_()
        model.weight.mul_(3)
    return model


def make_batch(batch_size: int = 17, input_size: int = 12, num_classes: int = 23) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch_size)
    x = torch.randn(batch_size, input_size, generator=generator)
    return x, torch.rand(batch_size, num_classes, generator=generator) < 0.2


def gradients_of(loss: Tensor, model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, *model.parameters()]))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture(params=["numba", "torch"])
def elementwise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test by either implementation of the elementwise part, whatever the device."""
    if request.param == "torch":
        monkeypatch.setattr(moe, "_to_gradient_", moe._to_gradient_torch)
    return request.param


@pytest.mark.parametrize("num_experts", [1, 2, 5])
def test_forward_equals_the_definition(num_experts: int) -> None:
    model, (x, _) = make_model(num_experts), make_batch()
    w, b = model.weight.detach().double(), model.bias.detach().double()
    expected = torch.zeros(17, 23, dtype=torch.float64)
    for row in range(17):
        for c in range(23):
            gates = torch.softmax(w[c, : num_experts + 1] @ x[row].double(), dim=0)
            for k in range(num_experts):
                expert = w[c, num_experts + 1 + k] @ x[row].double() + b[c, k]
                expected[row, c] += gates[k + 1] / (1 + math.exp(-expert))
    logits = model(x)
    assert logits.shape == (17, 23)
    torch.testing.assert_close(torch.sigmoid(logits).double(), expected, rtol=2e-6, atol=1e-7)


def test_one_class_by_hand() -> None:
    """Equal gates of the dummy and one expert of log-odds log 3: p = 1/2 * 3/4 = 3/8; the gradients follow."""
    model = moe.Config(num_experts=1, l2_penalty=0).build(1, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(math.log(3))
    x = torch.ones(1, 1)
    assert torch.sigmoid(model(x)).item() == pytest.approx(3 / 8, rel=1e-6)
    for label, loss, dummy_gate, expert_bias in [
        (False, -math.log(5 / 8), 1 / 2 - 4 / 5, 1 / 5 * 3 / 4),
        (True, -math.log(3 / 8), 1 / 2, -1 / 4),
    ]:
        model.zero_grad()
        value = model.loss(x, torch.tensor([[label]]))
        value.backward()
        assert value.item() == pytest.approx(loss, rel=1e-6)
        assert model.weight.grad is not None
        assert model.weight.grad.flatten().tolist() == pytest.approx(
            [dummy_gate, -dummy_gate, expert_bias], rel=1e-6, abs=1e-7
        )
        assert model.bias.grad is not None
        assert model.bias.grad.item() == pytest.approx(expert_bias, rel=1e-6)


@pytest.mark.parametrize("num_experts", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 17, 300])
def test_loss_and_gradients_equal_autograd_in_float64(num_experts: int, batch_size: int, elementwise: str) -> None:
    model, (x, labels) = make_model(num_experts), make_batch(batch_size)
    x.requires_grad_()
    expected_loss = naive_loss(model, x, labels)
    expected = gradients_of(expected_loss, model, x)
    loss = model.loss(x, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=2e-6)
    for actual, wanted in zip(gradients_of(loss, model, x), expected, strict=True):
        assert relative_error(actual, wanted) < 2e-6


def test_float64_parameters_give_float64_gradients() -> None:
    model, (x, labels) = make_model(2).double(), make_batch()
    x = x.double().requires_grad_()
    expected_loss = naive_loss(model, x, labels)
    loss = model.loss(x, labels)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-13)
    expected = gradients_of(expected_loss, model, x)
    for actual, wanted in zip(gradients_of(loss, model, x), expected, strict=True):
        assert relative_error(actual, wanted) < 1e-13


def test_rare_classes_keep_their_gradient(elementwise: str) -> None:
    """A class of p = 1e-6 that is absent: its small gradients are right to float32, not only their sum with others'."""
    model, (x, _) = make_model(2, l2_penalty=0), make_batch()
    with torch.no_grad():
        model.weight.mul_(0.1)
        model.bias.fill_(-14)
    labels = torch.zeros(17, 23, dtype=torch.bool)
    x.requires_grad_()
    expected = gradients_of(naive_loss(model, x, labels), model, x)
    for actual, wanted in zip(gradients_of(model.loss(x, labels), model, x), expected, strict=True):
        assert relative_error(actual, wanted) < 5e-6


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e30])
def test_huge_inputs_give_finite_exact_results(factor: float, elementwise: str) -> None:
    model, (x, labels) = make_model(3), make_batch()
    x = (x * factor).requires_grad_()
    assert torch.isfinite(model(x)).all()
    loss = model.loss(x, labels)
    actual = gradients_of(loss, model, x)
    assert all(torch.isfinite(g).all() for g in [loss, *actual])
    expected_loss = naive_loss(model, x, labels)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    if factor == 1e2:
        for g, wanted in zip(actual, gradients_of(expected_loss, model, x), strict=True):
            assert relative_error(g, wanted) < 1e-4


def test_forward_agrees_with_loss() -> None:
    model, (x, labels) = make_model(3, l2_penalty=0), make_batch()
    from_logits = torch.nn.functional.binary_cross_entropy_with_logits(
        model(x).double(), labels.double(), reduction="sum"
    )
    assert model.loss(x, labels).item() == pytest.approx(from_logits.item() / 17, rel=2e-6)


@pytest.mark.parametrize("block_bytes", [1, 3000, 1 << 30])
def test_block_size_changes_nothing(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, labels) = make_model(2), make_batch()
    x.requires_grad_()
    expected = [model(x), *gradients_of(model.loss(x, labels), model, x)]
    monkeypatch.setattr(moe, "_BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(moe, "_BLOCK_BYTES_ONE_CORE", block_bytes)
    actual = [model(x), *gradients_of(model.loss(x, labels), model, x)]
    for a, e in zip(actual, expected, strict=True):
        assert relative_error(a, e) < 1e-6


def test_same_input_same_bits() -> None:
    model, (x, labels) = make_model(4), make_batch()
    x.requires_grad_()
    first, second = (gradients_of(model.loss(x, labels), model, x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("num_experts", [2, 4])
def test_bfloat16_autocast(num_experts: int) -> None:
    model, (x, labels) = make_model(num_experts), make_batch(64)
    x.requires_grad_()
    expected_loss = naive_loss(model, x, labels)
    expected = gradients_of(expected_loss, model, x)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = model.loss(x, labels), model(x)
    assert logits.dtype == loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-2)
    actual = gradients_of(loss, model, x)
    assert all(g.dtype == torch.float32 for g in actual)
    for a, e in zip(actual, expected, strict=True):
        assert 1e-6 < relative_error(a, e) < 3e-2


def test_bfloat16_input_gets_a_bfloat16_gradient() -> None:
    model, (x, labels) = make_model(2), make_batch()
    x = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(x, labels).backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_gradients_accumulate_and_scale() -> None:
    model, (x, labels) = make_model(2, l2_penalty=0), make_batch(16)
    model.loss(x, labels).backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part in (slice(0, 8), slice(8, 16)):
        (model.loss(x[part], labels[part]) / 2).backward()
    for p, expected in zip(model.parameters(), whole, strict=True):
        assert relative_error(p.grad, expected) < 1e-6


def test_loss_inside_a_larger_graph() -> None:
    """The gradient goes on into what made x, as with a recurrent layer below."""
    torch.manual_seed(0)
    below, model, (x, labels) = torch.nn.Linear(12, 12), make_model(2), make_batch()
    expected = torch.autograd.grad(3 * naive_loss(model, torch.tanh(below(x)), labels), below.weight)[0]
    (3 * model.loss(torch.tanh(below(x)), labels)).backward()
    assert relative_error(below.weight.grad, expected) < 2e-6


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    model, (x, labels) = make_model(2), make_batch()
    model.loss(x, labels).backward()
    assert x.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    model.zero_grad()
    model.weight.requires_grad_(False)
    model.loss(x, labels).backward()
    assert model.weight.grad is None
    assert model.bias.grad is not None


def test_autograd_keeps_the_gradient_without_a_copy() -> None:
    model, (x, labels) = make_model(2), make_batch()
    loss = model.loss(x, labels)
    address = loss.grad_fn.gradients[1].data_ptr()
    loss.backward()
    assert model.weight.grad.data_ptr() == address


def test_no_grad_gives_the_same_loss_without_a_graph() -> None:
    model, (x, labels) = make_model(2), make_batch()
    with torch.no_grad():
        loss = model.loss(x, labels)
    assert not loss.requires_grad
    assert loss.item() == model.loss(x, labels).item()


def test_second_backward_is_refused() -> None:
    model, (x, labels) = make_model(2), make_batch()
    loss = model.loss(x, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it anew"):
        loss.backward()


def test_empty_batch() -> None:
    model = make_model(2, l2_penalty=0)
    loss = model.loss(torch.zeros(0, 12), torch.zeros(0, 23, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert model(torch.zeros(0, 12)).shape == (0, 23)


def test_labels_of_another_shape_are_refused() -> None:
    model, (x, labels) = make_model(2), make_batch()
    with pytest.raises(ValueError, match=r"\(17, 22\).*\(17, 23\)"):
        model.loss(x, labels[:, 1:])


def test_state_dict_round_trip() -> None:
    model, other, (x, _) = make_model(2), make_model(2), make_batch()
    other.reset_parameters()
    assert not torch.equal(model(x), other(x))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(model(x), other(x))


def test_meta_device_and_initial_weights() -> None:
    with torch.device("meta"):
        model = moe.Config(num_experts=32).build(1152, 4716)
    assert sum(p.numel() for p in model.parameters()) == 4716 * (65 * 1152 + 32)
    model = moe.Config(num_experts=3).build(100, 50)
    for units, num_units in ((model.weight[:, :4], 50 * 4), (model.weight[:, 4:], 50 * 3)):
        bound = math.sqrt(6 / (100 + num_units))
        assert units.abs().max().item() <= bound
        assert units.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not model.bias.any()


def test_config_refuses_nonsense() -> None:
    for wrong in ({"num_experts": 0}, {"l2_penalty": -1}, {"experts": 2}):
        with pytest.raises(ValidationError):
            moe.Config(**wrong)


def test_learns_what_a_linear_model_cannot() -> None:
    """Exclusive or of two signs, once as it is and once negated."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 2, generator=generator).sign() + 0.2 * torch.randn(256, 2, generator=generator)
    exclusive_or = x[:, 0] * x[:, 1] < 0
    labels = torch.stack([exclusive_or, ~exclusive_or], dim=1)
    losses = {}
    for name, model in {
        "moe": moe.Config(num_experts=4).build(2, 2),
        "logistic": logistic.Config().build(2, 2),
    }.items():
        torch.manual_seed(0)
        if isinstance(model, moe.MixtureOfExperts):
            model.reset_parameters()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            loss = model.loss(x, labels)
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["logistic"] > 1.9 * math.log(2)
    assert losses["moe"] < 0.5 * losses["logistic"]
