"""DenseASPP against the layers as usually written: modules one after another, with every concatenation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from mmray.losses import pitch_loss
from mmray.models import dense_aspp
from mmray.models._conv_flops import flops


class Naive(nn.Module):
    """Under the authors' names of the layers."""

    def __init__(self, growth: int, skip_copies: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.copies, self.order = skip_copies, [f"conv_d_{d}" for d in dilations]
        for number, (name, d) in enumerate(zip(self.order, dilations, strict=True)):
            setattr(self, name, layer(3 + number * growth, growth, d))
        self.up_conv3_pitch = layer(3 * (1 + skip_copies) + growth * len(dilations), 64)
        self.up_conv2_pitch, self.up_conv1_pitch, self.bottom_pitch = layer(64, 32), layer(32, 1), layer(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = x
        for name in self.order:
            maps = torch.cat([maps, getattr(self, name)(maps)], dim=1)
        maps = self.up_conv3_pitch(torch.cat([maps, *[x] * self.copies], dim=1))
        no_melody = self.bottom_pitch(maps).mean(dim=2, keepdim=True)
        return torch.cat([no_melody, self.up_conv1_pitch(self.up_conv2_pitch(maps))], dim=2).squeeze(1)


def layer(inputs: int, outputs: int, dilation: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation)
    return nn.Sequential(nn.BatchNorm2d(inputs), convolution, nn.SELU())


PAPER = (3, 6, 12, 18, 24)


def pair(
    growth: int = 10, skip_copies: int = 8, dilations: tuple[int, ...] = PAPER, bins: int = 40, **settings: Any
) -> tuple[Naive, dense_aspp.DenseAspp]:
    """Both with the same weights, statistics and so on, all of them away from their initial values."""
    torch.manual_seed(growth)
    naive = Naive(growth, skip_copies, dilations)
    with torch.no_grad():
        for name, value in naive.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.add_(0.2 * torch.randn_like(value))
    config = dense_aspp.Config(growth=growth, skip_copies=skip_copies, dilations=dilations, **settings)
    ours = config.build(bins)
    ours.load_state_dict(dense_aspp.rename_published(naive.state_dict()))
    return naive, ours


def maps(rows: int = 2, bins: int = 40, frames: int = 60) -> Tensor:
    return torch.rand(rows, 3, bins, frames, generator=torch.Generator().manual_seed(frames))


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    rows = torch.randint(0, logits.shape[1], (len(logits), logits.shape[2]), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    pitch_loss(logits, rows, torch.ones_like(rows, dtype=torch.bool)).backward()
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def renamed_gradients(naive: Naive, logits: Tensor) -> dict[str, Tensor]:
    found = gradients(naive, logits)
    renamed = dense_aspp.rename_published(naive.state_dict() | found)
    return {key: renamed[key] for key in renamed if key.endswith(("weight", "bias"))}


def relative_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    of_all = [torch.cat([values[key].flatten().double() for key in expected]) for values in (actual, expected)]
    return float((of_all[0] - of_all[1]).norm() / of_all[1].norm())


SIZES = [
    {},
    {"growth": 20, "skip_copies": 1},
    {"growth": 4, "skip_copies": 0, "dilations": (2, 1)},
    {"growth": 3, "dilations": (24, 18, 12, 6, 3)},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("bins", "frames"), [(40, 60), (5, 1), (1, 3)])
def test_running_statistics_give_what_the_layers_give(sizes: dict[str, Any], bins: int, frames: int) -> None:
    naive, ours = pair(**sizes, bins=bins)
    with torch.no_grad():
        expected = naive.double().eval()(maps(2, bins, frames).double())
        actual = ours.double().eval()(maps(2, bins, frames).double())
    assert actual.shape == (2, bins + 1, frames)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("sizes", SIZES)
def test_training_gives_the_logits_gradients_and_statistics_of_the_layers(sizes: dict[str, Any]) -> None:
    naive, ours = (model.double() for model in pair(**sizes))
    expected, actual = naive(maps().double()), ours(maps().double())
    torch.testing.assert_close(actual, expected)
    assert relative_error(gradients(ours, actual), renamed_gradients(naive, expected)) < 1e-8
    expected_state = dense_aspp.rename_published(naive.state_dict())
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected_state[key])


def test_float32_is_float32() -> None:
    naive, ours = pair()
    expected, actual = naive(maps()), ours(maps())
    assert actual.dtype == torch.float32
    assert (actual - expected).norm() < 1e-4 * expected.norm()
    assert relative_error(gradients(ours, actual), renamed_gradients(naive, expected)) < 1e-3


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_bfloat16_is_as_near_as_that_of_the_layers(sizes: dict[str, Any], threads: int) -> None:
    naive, ours = pair(**sizes)
    exact = naive(maps())
    expected = renamed_gradients(naive, exact)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            rounded_naive, rounded = naive(maps()), ours(maps())
        assert rounded.dtype == torch.float32
        error = relative_error(gradients(ours, rounded), expected)
        usual = relative_error(renamed_gradients(naive, rounded_naive.float()), expected)
    finally:
        torch.set_num_threads(before)
    assert (rounded - exact).norm() < 2 * (rounded_naive - exact).norm()
    assert error < 2 * usual < 0.4


def test_selu_with_statistics_against_float64() -> None:
    """The compiled pass over bfloat16, with a batch of one and channels far from 0, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    for shape in [(3, 10, 7, 13), (1, 64, 2, 1), (2, 1, 5, 4)]:
        _, outputs, bins, frames = shape
        x = (torch.randn(shape, generator=generator) * 3).bfloat16().contiguous(memory_format=torch.channels_last)
        bias = torch.randn((4, frames, outputs), generator=generator) * 5
        kind = torch.randint(0, 4, (bins,), generator=generator)
        weights = torch.randn(shape, generator=generator).bfloat16()
        of_mean, of_var = torch.randn(2, outputs, generator=generator)

        x, bias = x.requires_grad_(), bias.requires_grad_()
        y, mean, var, pivot = dense_aspp._Activate.apply(x, bias, kind)
        actual = torch.autograd.grad([(y.float() * weights).sum(), of_mean @ mean, of_var @ var], [x, bias])
        exact_x, exact_bias = x.detach().double().requires_grad_(), bias.detach().double().requires_grad_()
        exact = F.selu(exact_x + torch.stack([exact_bias[k].T for k in kind.tolist()], dim=1))
        exact_var, exact_mean = torch.var_mean(exact, dim=(0, 2, 3), correction=0)
        terms = [(exact * weights).sum(), of_mean.double() @ exact_mean, of_var.double() @ exact_var]
        expected = torch.autograd.grad(terms, [exact_x, exact_bias])

        restored = y.double() + pivot.double().view(1, -1, 1, 1)
        torch.testing.assert_close(restored, exact.detach(), rtol=4e-3, atol=4e-2)
        torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(var.double(), exact_var, rtol=1e-4, atol=1e-6)
        for found, wanted in zip(actual, expected, strict=True):
            assert (found.double() - wanted).norm() < 0.02 * wanted.norm()


def test_variance_of_a_channel_far_from_zero_does_not_cancel() -> None:
    x = torch.full((2, 1, 16, 16), 300.0) + torch.tensor([0.0, 2.0]).repeat(128).view(1, 1, 16, 16)
    _, mean, var, _ = dense_aspp._Activate.apply(x.bfloat16(), torch.zeros(4, 16, 1), torch.zeros(16).long())
    assert float(mean) == pytest.approx(301 * 1.0507009873554805, rel=1e-6)
    assert float(var) == pytest.approx(1.0507009873554805**2, rel=1e-5)


def test_clip_statistics_are_those_of_each_clip_alone() -> None:
    naive, ours = pair(batch_statistics="clip")
    state = copy.deepcopy(ours.state_dict())
    x = maps(3) * torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1, 1)
    with torch.no_grad():
        expected = torch.cat([naive.double().train()(clip[None].double()) for clip in x])
        actual = ours.double().eval()(x.double()).float()
    torch.testing.assert_close(actual, expected.float())
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    assert ours.batch_statistics == "clip"


@pytest.mark.parametrize(
    ("settings", "parameters", "reach"),
    [
        ({}, 74_850, 66),
        ({"growth": 20, "skip_copies": 1}, 120_212, 66),
        ({"dilations": (1, 1, 1, 1, 1)}, 74_850, 8),
        ({"dilations": (24, 18, 12, 6, 3)}, 74_850, 66),
    ],
)
def test_sizes_of_the_paper(settings: dict[str, Any], parameters: int, reach: int) -> None:
    with torch.device("meta"):
        model = dense_aspp.Config(**settings).build(256)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.context_frames == reach


def test_padding_is_with_zeros_behind_batch_norm() -> None:
    """One layer by hand: a constant input of 1, weights 1, shift 3: 9 taps inside, 6 at an edge, 4 in a corner."""
    unit = dense_aspp._Layer(1, 1)
    with torch.no_grad():
        unit.norm.bias.fill_(3)
        unit.conv.weight.fill_(1)
        unit.conv.bias.fill_(0.5)
        convolved, bias, kind = unit.eval()(dense_aspp._Maps([torch.ones(1, 1, 4, 3)], None))
    value = 3 + 1 / (1 + 1e-5) ** 0.5
    taps = torch.tensor([[4.0, 6, 4], [6, 9, 6], [6, 9, 6], [4, 6, 4]])
    torch.testing.assert_close(convolved[0, 0] + bias[kind, :, 0], taps * value + 0.5)


def test_the_config_is_told_by_the_weights() -> None:
    for settings in ({}, {"growth": 20, "skip_copies": 1}, {"dilations": (24, 18, 12, 6, 3)}, {"skip_copies": 0}):
        config = dense_aspp.Config(**settings)
        state = Naive(config.growth, config.skip_copies, config.dilations).state_dict()
        assert dense_aspp.published_config(state) == config


def test_weights_of_something_else_are_refused() -> None:
    state = Naive(10, 8, PAPER).state_dict()
    with pytest.raises(ValueError, match=r"missing keys \['conv_d_6.0.bias'\], unexpected keys \['head.weight'\]"):
        dense_aspp.rename_published(
            {k: v for k, v in state.items() if k != "conv_d_6.0.bias"} | {"head.weight": state["conv_d_6.0.bias"]}
        )
    with pytest.raises(ValueError, match=r"growth 10, skip_copies 8.*conv_d_12.0.weight is \(5,\), not \(23,\)"):
        dense_aspp.rename_published(state | {"conv_d_12.0.weight": torch.zeros(5)})
    with pytest.raises(ValueError, match=r"no convolutions.*among the keys \['weight'\]"):
        dense_aspp.rename_published({"weight": torch.zeros(3)})


def test_wrong_settings_and_shapes_are_refused() -> None:
    for settings in ({"growth": 0}, {"dilations": ()}, {"dilations": (0,)}, {"skip_copies": -1}):
        with pytest.raises(ValidationError):
            dense_aspp.Config(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        dense_aspp.Config().build(0)
    with pytest.raises(ValueError, match=r"\(2, 4, 40, 7\); dense_aspp needs \(B, 3, F, T\)"):
        dense_aspp.Config().build(40)(torch.zeros(2, 4, 40, 7))


def test_flops_are_two_a_multiply_add() -> None:
    """By hand: what each convolution's weights cost at each place, with the copies of the input as one."""
    model = dense_aspp.Config(growth=4, skip_copies=2, dilations=(1, 2)).build(16)
    read = 9 * (3 * 4 + 7 * 4 + 11 * 64 + 64 * 32 + 64 + 32)
    assert flops(model, 16, 10) == 2 * read * 16 * 10
