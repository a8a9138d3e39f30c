"""SegNet against the layers as usually written, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmray.models import segnet
from mmray.models._conv_flops import flops


class Naive(nn.Module):
    """Under the authors' names of the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = layer(3, 32), layer(32, 64), layer(64, 128)
        self.bottom = layer(128, 1, padding=(0, 2))
        self.up_conv3, self.up_conv2, self.up_conv1 = layer(128, 64), layer(64, 32), layer(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, first = largest_of_four(self.conv1(x))
        x, second = largest_of_four(self.conv2(x))
        x, third = largest_of_four(self.conv3(x))
        no_melody = self.bottom(x)
        x = self.up_conv3(back_in_place(x, third))
        x = self.up_conv2(back_in_place(x, second))
        x = self.up_conv1(back_in_place(x, first))
        return torch.cat([no_melody, x], dim=2).squeeze(1)


def layer(inputs: int, outputs: int, padding: tuple[int, int] = (2, 2)) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 5, padding=padding), nn.SELU())


def largest_of_four(x: Tensor) -> tuple[Tensor, Tensor]:
    groups = x.unflatten(2, (-1, 4))
    return groups.amax(dim=3), groups.argmax(dim=3)


def back_in_place(x: Tensor, place: Tensor) -> Tensor:
    groups = torch.zeros(*x.shape[:3], 4, x.shape[3])
    return groups.scatter(3, place.unsqueeze(3), x.unsqueeze(3)).flatten(2, 3)


def pair() -> tuple[Naive, segnet.SegNet]:
    torch.manual_seed(0)
    naive = Naive()
    with torch.no_grad():
        for key, value in naive.state_dict().items():
            if value.is_floating_point() and not key.endswith("running_var"):
                value.add_(0.1 * torch.randn_like(value))
    ours = segnet.Config().build(320)
    ours.load_state_dict(segnet.rename_published(naive.state_dict()))
    return naive, ours


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frames", [1, 12])
def test_it_gives_what_the_layers_give(training: bool, frames: int) -> None:
    naive, ours = pair()
    x = torch.rand(2, 3, 320, frames, generator=torch.Generator().manual_seed(0))
    expected, actual = naive.train(training)(x), ours.train(training)(x)
    assert actual.shape == (2, 321, frames)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_bins", [64, 256, 320])
def test_all_multiples_of_64_bins(num_bins: int) -> None:
    model = segnet.Config().build(num_bins).eval()
    assert model(torch.rand(1, 3, num_bins, 3)).shape == (1, num_bins + 1, 3)


@pytest.mark.parametrize(("num_bins", "choices"), [(0, "64"), (63, "64"), (65, "64 or 128"), (300, "256 or 320")])
def test_other_numbers_of_bins_are_refused_with_the_choices(num_bins: int, choices: str) -> None:
    with pytest.raises(ValueError, match=rf"segnet has {num_bins} bins.* multiple of 64: {choices}$"):
        segnet.Config().build(num_bins)


def test_a_map_of_another_height_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 256, 5\); this segnet needs \(B, 3, 320, T\)"):
        segnet.Config().build(320)(torch.zeros(1, 3, 256, 5))


def test_sizes_of_the_released_weights() -> None:
    """Weights, biases, and a scale and a shift a channel that is read: 519,624. (Gao et al. print 540.2 K.)"""
    with torch.device("meta"):
        model = segnet.Config().build(320)
    convolutions = [(3, 32), (32, 64), (64, 128), (128, 1), (128, 64), (64, 32), (32, 1)]
    by_hand = sum(25 * i * o + o + 2 * i for i, o in convolutions)
    assert sum(p.numel() for p in model.parameters()) == by_hand == 519_624


def test_flops_are_two_a_multiply_add() -> None:
    """By hand: the bins that each convolution runs at. No row of the bottom is left beside the one it makes."""
    places = 256 * 3 * 32 + 64 * 32 * 64 + 16 * 64 * 128 + 16 * 128 * 64 + 64 * 64 * 32 + 256 * 32
    assert flops(segnet.Config().build(256), 256, 7) == 2 * 7 * (25 * places + 5 * 4 * 128)


def test_weights_of_something_else_are_refused() -> None:
    state = Naive().state_dict()
    with pytest.raises(ValueError, match=r"missing keys \['conv1.1.bias'\], unexpected keys \['x'\]"):
        segnet.rename_published({k: v for k, v in state.items() if k != "conv1.1.bias"} | {"x": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"SegNet for 320 bins: conv2.1.bias is \(3,\), not \(64,\)"):
        segnet.rename_published(state | {"conv2.1.bias": torch.zeros(3)})
