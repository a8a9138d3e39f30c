"""What every model promises, whatever it takes: checks that the contract tests of all kinds of models share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmray import lookup


def taking(kind: str) -> list[str]:
    """The names of all models that take this kind of input."""
    return [name for name in lookup.names("model") if lookup.load("model", name).Config.takes == kind]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of so few numbers are faster without threads that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_config(name: str) -> None:
    """The config is called as its module, takes no other key, and can't be changed."""
    Config = lookup.load("model", name).Config
    assert Config().name == name
    assert Config.model_validate({"name": name}) == Config()
    with pytest.raises(ValidationError, match="name"):
        Config(name="another")
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Config(no_such_key=1)
    with pytest.raises(ValidationError, match="frozen"):
        Config().name = name


def check_seeded(weights: Callable[[int], Mapping[str, Tensor]]) -> None:
    """`weights(seed)` of a new model depend on the seed of torch's global generator alone."""
    first, again, other = weights(3), weights(3), weights(4)
    assert first.keys() == again.keys()
    for key in first:
        assert torch.equal(first[key], again[key]), key
    assert any(not torch.equal(first[key], other[key]) for key in first)


def check_round_trip(model: nn.Module, other: nn.Module, answer: Callable[[nn.Module], Tensor], folder: Path) -> None:
    """The state of `model`, through safetensors, makes `other`, which answers otherwise, answer as it does."""
    path = folder / "model.safetensors"
    model.eval(), other.eval()
    with torch.no_grad():
        assert not torch.equal(answer(model), answer(other))
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
        other.load_state_dict(load_file(path))
        assert torch.equal(answer(model), answer(other))


def check_gradients(model: nn.Module, nonzero: bool = False) -> None:
    """After a backward pass every parameter has a gradient that is finite, and, if asked for, not 0 all over."""
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.shape == parameter.shape, key
        assert parameter.grad.dtype == parameter.dtype, key
        assert torch.isfinite(parameter.grad).all(), key
        assert not nonzero or parameter.grad.abs().sum() > 0, key


def check_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """On the meta device the same model is built, without a number in it; it is returned."""
    with torch.device("meta"):
        meta = build()
    assert all(p.is_meta for p in meta.parameters())
    real = build()
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert [k for k, _ in meta.named_parameters()] == [k for k, _ in real.named_parameters()]
    return meta


def check_rows_apart(model: nn.Module, x: Tensor, rtol: float, atol: float) -> None:
    """In eval mode a row gives alone what it gives among others."""
    model.eval()
    with torch.no_grad():
        together = model(x)
        for row in range(len(x)):
            torch.testing.assert_close(model(x[row : row + 1])[0], together[row], rtol=rtol, atol=atol)


def check_autocast(model: nn.Module, answer: Callable[[nn.Module], Tensor], atol: float) -> Tensor:
    """Under bfloat16 the probabilities, which are over dimension 1, are about the same; returns the logits."""
    with torch.autocast("cpu", torch.bfloat16):
        rounded = answer(model)
    assert (rounded.float().softmax(1) - answer(model).softmax(1)).abs().max() < atol
    return rounded


def build(name: str, *sizes: Any, seed: int = 0, **config: Any) -> nn.Module:
    """A new model, after the seed."""
    torch.manual_seed(seed)
    model: nn.Module = lookup.load("model", name).Config(**config).build(*sizes)
    return model
