"""Masks and mixtures of feature sequences: by hand, within an example's length, alike by seed; padding stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masks import longest_run
from pydantic import ValidationError

from mmray.features.augment_sequence import Settings, mixup, spec_augment


def batch(lengths, num_frames=None, num_features=5, seed=0):
    """Features unlike one another, none of them a mean; padding is 99."""
    lengths = torch.as_tensor(lengths)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(len(lengths), num_frames or int(lengths.max()), num_features, generator=generator)
    x = x + 10 * torch.arange(num_features)
    for row, length in enumerate(lengths.tolist()):
        x[row, length:] = 99
    return x, lengths


def one_hot(classes, num_classes=3):
    return torch.nn.functional.one_hot(torch.as_tensor(classes), num_classes).float()


def test_off_is_the_identity():
    x, lengths = batch([7, 3])
    for settings in (Settings(), Settings(time_masks=2), Settings(feature_mask_rows=3), Settings(time_mask_frames=3)):
        assert torch.equal(spec_augment(x, lengths, settings), x)
    mixed, same_lengths, labels = mixup(x, lengths, one_hot([0, 1]), 0)
    assert torch.equal(mixed, x)
    assert torch.equal(same_lengths, lengths)
    assert torch.equal(labels, one_hot([0, 1]))


def test_time_masks_are_runs_of_bounded_length_inside_the_example():
    x, lengths = batch([30, 12] * 300)
    before = x.clone()
    torch.manual_seed(0)
    masked = spec_augment(x, lengths, Settings(time_masks=1, time_mask_frames=6))
    assert torch.equal(x, before)
    hidden = (masked != x).any(dim=2)
    assert torch.equal(masked[~hidden], x[~hidden])
    for row, length in enumerate(lengths.tolist()):
        mean = x[row, :length].double().mean(dim=0)
        torch.testing.assert_close(masked[row, hidden[row]], mean.float().expand(int(hidden[row].sum()), -1))
        assert longest_run(hidden[row].tolist()) == hidden[row].sum()
        assert not hidden[row, length:].any()
    for length in (30, 12):
        rows = hidden[lengths == length]
        assert set(rows.sum(dim=1).tolist()) == set(range(7))
        assert rows[:, :length].any(dim=0).all()  # every frame is reached, the first and the last too


def test_the_lengths_of_runs_are_uniform():
    x, lengths = batch([20] * 6000, num_features=1)
    torch.manual_seed(0)
    masked = spec_augment(x, lengths, Settings(time_masks=1, time_mask_frames=5))
    counts = np.bincount((masked != x)[:, :, 0].sum(dim=1), minlength=6)
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_feature_masks_cover_all_frames_of_the_example():
    x, lengths = batch([8, 5] * 100, num_features=9)
    torch.manual_seed(0)
    masked = spec_augment(x, lengths, Settings(feature_masks=1, feature_mask_rows=4))
    hidden = masked != x
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(hidden[row, :length], hidden[row, :1].expand(length, -1))
        assert not hidden[row, length:].any()
        assert longest_run(hidden[row, 0].tolist()) == hidden[row, 0].sum() <= 4
    assert hidden[:, 0].any(dim=0).all()
    assert hidden[:, 0].sum(dim=1).max() == 4


def test_share_bounds_the_masks_of_short_examples():
    x, lengths = batch([100, 10, 3] * 200)
    torch.manual_seed(0)
    masked = spec_augment(x, lengths, Settings(time_masks=1, time_mask_frames=15, time_mask_share=0.2))
    counts = (masked != x).any(dim=2).sum(dim=1).reshape(-1, 3)
    assert counts.max(dim=0).values.tolist() == [15, 2, 0]


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    st.integers(1, 4),
    st.tuples(*[st.integers(0, 20)] * 4),
    st.floats(0, 1),
)
def test_whatever_is_masked_is_finite_and_padding_stays(lengths, num_features, numbers, share):
    """Lengths of 0, and masks longer than everything."""
    x, lengths = batch(lengths, num_frames=12, num_features=num_features)
    time_masks, time_mask_frames, feature_masks, feature_mask_rows = numbers
    settings = Settings(
        time_masks=time_masks, time_mask_frames=time_mask_frames, time_mask_share=share,
        feature_masks=feature_masks, feature_mask_rows=feature_mask_rows,
    )  # fmt: skip
    masked = spec_augment(x, lengths, settings)
    assert torch.isfinite(masked).all()
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(masked[row, length:], x[row, length:])


def test_alike_by_seed_and_different_by_example():
    x, _ = batch([40])
    x, lengths = x.expand(8, -1, -1), torch.full((8,), 40)
    settings = Settings(time_masks=2, time_mask_frames=9, feature_masks=1, feature_mask_rows=2)
    torch.manual_seed(7)
    first = spec_augment(x, lengths, settings)
    first_mix = mixup(x, lengths, one_hot(range(8), 8), 0.4)
    torch.manual_seed(7)
    assert torch.equal(spec_augment(x, lengths, settings), first)
    assert all(torch.equal(a, b) for a, b in zip(mixup(x, lengths, one_hot(range(8), 8), 0.4), first_mix, strict=True))
    assert not torch.equal(spec_augment(x, lengths, settings), first)
    assert len({example.numpy().tobytes() for example in first}) == 8


def drawn(alpha, num_examples, seed=3):
    """The shares and partners of a batch, read from the labels of one class an example."""
    torch.manual_seed(seed)
    x, lengths = batch([2] * num_examples)
    _, _, labels = mixup(x, lengths, torch.eye(num_examples, dtype=torch.float64), alpha)
    own = labels.diagonal()
    others = labels - torch.diag(own)
    return own, torch.where(others.sum(dim=1) > 0, others.argmax(dim=1), torch.arange(num_examples))


def test_features_are_mixed_as_the_labels_are():
    num_examples = 40
    own, partner = drawn(0.5, num_examples)
    x, lengths = batch([3, 7, 5, 2] * 10, num_frames=9)
    torch.manual_seed(3)
    mixed, same_lengths, labels = mixup(x, lengths, torch.eye(num_examples, dtype=torch.float64), 0.5)
    assert torch.equal(same_lengths, lengths)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(num_examples, dtype=torch.float64))
    seen = set()
    for row in range(num_examples):
        other = int(partner[row])
        own_length, other_length = int(lengths[row]), int(lengths[other])
        seen.add((own_length > other_length) - (own_length < other_length))
        for t in range(own_length):
            expected = own[row] * x[row, t] + (1 - own[row]) * x[other, t % other_length]
            torch.testing.assert_close(mixed[row, t], expected.float())
        assert torch.equal(mixed[row, own_length:], x[row, own_length:])
    assert seen == {-1, 0, 1}  # shorter, equal and longer partners


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_the_beta_distribution(alpha):
    own, partner = drawn(alpha, 1200)
    own = own[partner != torch.arange(1200)].numpy()  # an example that met itself shows no share
    assert abs(own.mean() - 0.5) < 0.06
    assert abs(own.var() - 1 / (4 * (2 * alpha + 1))) < 0.02
    assert len(set(partner.tolist())) == 1200


def test_a_partner_without_frames_adds_nothing():
    x, lengths = batch([4, 0], num_frames=4)
    for seed in range(8):
        torch.manual_seed(seed)
        mixed, _, labels = mixup(x, lengths, one_hot([0, 1]), 1.0)
        torch.testing.assert_close(mixed, x)
        assert labels[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_type_and_leaves_the_arguments(dtype):
    x, lengths = batch([6, 4, 5])
    x, labels = x.to(dtype), one_hot([0, 1, 2])
    before = x.clone()
    masked = spec_augment(x, lengths, Settings(time_masks=3, time_mask_frames=4))
    mixed, _, shares = mixup(x, lengths, labels, 0.4)
    assert masked.dtype == mixed.dtype == dtype
    assert shares.dtype == torch.float32
    assert torch.equal(x, before)
    assert torch.equal(labels, one_hot([0, 1, 2]))


def test_errors():
    x, lengths = batch([6, 4])
    with pytest.raises(ValueError, match=r"lengths have shape \(1,\)"):
        spec_augment(x, lengths[:1], Settings())
    with pytest.raises(ValueError, match=r"expected \(B, T, D\)"):
        mixup(x[0], lengths, one_hot([0, 1]), 0.2)
    with pytest.raises(ValueError, match=r"labels have shape \(2,\) .* one_hot"):
        mixup(x, lengths, torch.tensor([0, 1]), 0.2)
    with pytest.raises(ValueError, match="alpha=-1 is below 0"):
        mixup(x, lengths, one_hot([0, 1]), -1)
    with pytest.raises(ValueError, match="alpha=nan"):
        mixup(x, lengths, one_hot([0, 1]), float("nan"))
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Settings(time_mask_share=1.5)
    with pytest.raises(ValidationError, match="time_mask"):
        Settings(time_mask=1)
