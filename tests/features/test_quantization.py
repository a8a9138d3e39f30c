"""Dequantisation and the mean over frames, against the formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmray.features.quantization import dequantize, mean_of_frames

LEVEL, LOWEST = 4 / 255, 4 / 512 - 2  # of YouTube-8M's published reader


def by_formula(levels: Tensor) -> np.ndarray:
    return levels.numpy().astype(np.float64) * LEVEL + LOWEST


def random_levels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_level_stands_for_its_feature(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    levels = torch.arange(256, dtype=torch.uint8).view(4, 64)
    features = dequantize(levels.to(device)).cpu()
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features.numpy(), by_formula(levels), rtol=0, atol=3e-7)
    assert features[0, 0] == pytest.approx(-1.9921875)
    assert features[3, 63] == pytest.approx(2.0078125)


def test_levels_that_do_not_lie_side_by_side_and_none() -> None:
    levels = random_levels(6, 10)
    for view in (levels.T, levels[::2, 1:], levels[:0], levels[0, 0]):
        features = dequantize(view)
        assert features.shape == view.shape
        np.testing.assert_allclose(features.numpy(), by_formula(view), rtol=0, atol=3e-7)


@given(st.lists(st.sampled_from([0, 1, 2, 256, 257, 258, 515, 600]), max_size=4), st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_mean_of_frames_is_the_mean_of_the_features(lengths: list[int], size: int) -> None:
    """Also of more frames than sums of 16 bits can hold; exact but for one rounding."""
    levels = random_levels(sum(lengths), size, seed=size)
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    mean = mean_of_frames(levels, offsets)
    assert mean.dtype == torch.float32
    assert mean.shape == (len(lengths), size)
    for row, part in zip(mean, levels.split(lengths), strict=True):
        expected = by_formula(part).mean(0) if len(part) else np.zeros(size)
        np.testing.assert_allclose(row.numpy(), expected, rtol=0, atol=1.3e-7)


def test_highest_levels_do_not_overflow() -> None:
    mean = mean_of_frames(torch.full((70_000, 3), 255, dtype=torch.uint8), torch.tensor([0, 257, 70_000]))
    np.testing.assert_allclose(mean.numpy(), 255 * LEVEL + LOWEST, rtol=1e-7)


def test_what_is_not_quantised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"levels are torch\.float32"):
        dequantize(torch.zeros(3))
    with pytest.raises(ValueError, match=r"levels are torch\.int64"):
        mean_of_frames(torch.zeros(3, 2, dtype=torch.int64), torch.tensor([0, 3]))


@pytest.mark.parametrize("offsets", [[0, 2], [1, 4], [0, 3, 1, 4], [0, 5]])
def test_offsets_that_are_not_of_the_frames_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="must ascend from 0 to the 4 frames"):
        mean_of_frames(torch.zeros(4, 2, dtype=torch.uint8), torch.tensor(offsets))
