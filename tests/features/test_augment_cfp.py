"""Augmented maps and labels: exact by hand, alike by seed, within bounds; a shifted tone is the tone an interval up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masks import longest_run
from pydantic import ValidationError

from mmray.features import cfp
from mmray.features.augment_cfp import Settings, augment, shift_pitch
from mmray.features.contour import nearest_bins


def random_batch(num_examples=4, num_bins=20, num_frames=30):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(num_examples, 3, num_bins, num_frames, generator=generator) + 0.5  # nothing is 0 by itself
    return x, torch.randint(0, num_bins + 1, (num_examples, num_frames), generator=generator)


def test_off_is_the_identity():
    x, rows = random_batch()
    for settings in (Settings(), Settings(time_masks=2), Settings(frequency_mask_bins=9)):
        same_x, same_rows, counted = augment(x, rows, settings)
        assert torch.equal(same_x, x)
        assert torch.equal(same_rows, rows)
        assert counted.dtype == torch.bool
        assert counted.all()


def test_shift_by_hand():
    x = torch.arange(1.0, 7).reshape(2, 1, 3, 1).expand(2, 3, 3, 5)
    rows = torch.tensor([[0, 1, 2, 3, 1], [0, 1, 2, 3, 3]])
    moved_x, moved_rows, counted = shift_pitch(x, rows, torch.tensor([1, -2]))
    assert moved_x[0, 2, :, 4].tolist() == [0, 1, 2]
    assert moved_x[1, 0, :, 0].tolist() == [6, 0, 0]
    assert moved_rows.tolist() == [[0, 2, 3, 0, 2], [0, 0, 0, 1, 1]]
    assert counted.tolist() == [[True, True, True, False, True], [True, False, False, True, True]]


@pytest.mark.parametrize("shift", [-30, -20, -7, 0, 1, 19, 20])
def test_labels_move_with_the_map(shift):
    """The map says the row by itself, so that labels can be read off it again."""
    rows = torch.arange(21)[None]
    x = torch.nn.functional.one_hot(rows, 21).float()[:, None, :, 1:].expand(1, 3, 21, 20).permute(0, 1, 3, 2)
    moved_x, moved_rows, counted = shift_pitch(x, rows, torch.tensor([shift]))
    for t, row in enumerate(rows[0].tolist()):
        shown = moved_x[0, 1, :, t].nonzero().ravel().tolist()
        if row == 0:
            assert (moved_rows[0, t], counted[0, t]) == (0, True)
        elif 1 <= row + shift <= 20:
            assert shown == [row + shift - 1]
            assert (moved_rows[0, t], counted[0, t]) == (row + shift, True)
        else:
            assert shown == []
            assert (moved_rows[0, t], counted[0, t]) == (0, False)


def test_every_shift_is_drawn_and_none_beyond():
    x, rows = torch.zeros(500, 3, 9, 1), torch.full((500, 1), 5)
    x[:, :, 4] = 1
    torch.manual_seed(0)
    moved_x, moved_rows, counted = augment(x, rows, Settings(pitch_shift_bins=3))
    assert set(moved_rows.ravel().tolist()) == {2, 3, 4, 5, 6, 7, 8}
    assert counted.all()
    assert torch.equal(moved_x.argmax(dim=2)[:, 0], moved_rows - 1)


def test_masks_are_runs_of_bounded_length_over_all_channels():
    x, rows = random_batch(num_examples=300)
    torch.manual_seed(0)
    masked, same_rows, counted = augment(x, rows, Settings(time_masks=1, time_mask_frames=6))
    assert torch.equal(same_rows, rows)
    assert counted.all()
    hidden = masked == 0
    assert torch.equal(hidden, hidden[:, :1, :1, :].expand_as(hidden))
    assert torch.equal(masked[~hidden], x[~hidden])
    lengths = hidden[:, 0, 0].sum(dim=1)
    assert set(lengths.tolist()) == set(range(7))
    assert [longest_run(row) for row in hidden[:, 0, 0].tolist()] == lengths.tolist()
    assert hidden[:, 0, 0].any(dim=0).all()  # every frame is reached, the first and the last too

    masked, _, _ = augment(x, rows, Settings(frequency_masks=2, frequency_mask_bins=4))
    hidden = masked == 0
    assert torch.equal(hidden, hidden[:, :1, :, :1].expand_as(hidden))
    assert hidden[:, 0, :, 0].sum(dim=1).max() == 8
    assert max(longest_run(column) for column in hidden[:, 0, :, 0].tolist()) <= 8


def test_masks_longer_than_the_map():
    x, rows = random_batch(num_examples=50, num_bins=3, num_frames=2)
    masked, _, _ = augment(
        x, rows, Settings(time_masks=1, time_mask_frames=99, frequency_masks=1, frequency_mask_bins=9)
    )
    assert masked.shape == x.shape
    assert torch.equal(masked[masked != 0], x[masked != 0])


def test_alike_by_seed_and_different_by_example():
    x, rows = random_batch(num_examples=1)
    x, rows = x.expand(8, -1, -1, -1), rows.expand(8, -1)
    everything = Settings(
        pitch_shift_bins=5, time_masks=2, time_mask_frames=9, frequency_masks=2, frequency_mask_bins=4
    )
    before = x.clone()
    torch.manual_seed(7)
    first = augment(x, rows, everything)
    torch.manual_seed(7)
    second = augment(x, rows, everything)
    third = augment(x, rows, everything)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0])
    assert len({example.numpy().tobytes() for example in first[0]}) == 8
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_type(dtype):
    x, rows = random_batch()
    altered, moved, _ = augment(x.to(dtype), rows, Settings(pitch_shift_bins=2, time_masks=1, time_mask_frames=3))
    assert altered.dtype == dtype
    assert moved.dtype == torch.int64


def test_errors():
    x, rows = random_batch()
    with pytest.raises(ValueError, match=r"target_rows \(4, 29\)"):
        augment(x, rows[:, 1:], Settings())
    with pytest.raises(ValueError, match="expected"):
        augment(x[0], rows, Settings())
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        Settings(pitch_shift_bins=-1)
    with pytest.raises(ValidationError, match="time_mask"):
        Settings(time_mask=1)


def harmonic_tone(f0_hz, sample_rate_hz, seconds=1.0):
    """Ten harmonics, falling by 6 dB an octave."""
    times = np.arange(int(seconds * sample_rate_hz)) / sample_rate_hz
    tone = sum(np.sin(2 * np.pi * f0_hz * k * times + k) / k for k in range(1, 11))
    return (0.1 * tone).astype(np.float32)


@pytest.mark.parametrize("bins", [4, 12, -12])
def test_a_shifted_tone_is_the_tone_an_interval_away(bins):
    feature = cfp.Settings()
    interval = 2 ** (bins / feature.bins_per_octave)
    maps = [
        torch.from_numpy(cfp.Cfp(feature)(harmonic_tone(f0, feature.sample_rate_hz))).permute(1, 2, 0)[None, :, :, 5:-5]
        for f0 in (220.0, 220.0 * interval)
    ]
    tone, wanted = maps
    row = nearest_bins([220.0, 220.0 * interval], feature.frequencies_hz())
    rows = torch.full((1, tone.shape[-1]), int(row[0]))
    shifted, moved_rows, counted = shift_pitch(tone, rows, torch.tensor([bins]))
    assert counted.all()
    assert (moved_rows == row[1]).all()
    for channel in range(3):
        alike, before = (
            float(torch.nn.functional.cosine_similarity(x[0, channel].ravel(), wanted[0, channel].ravel(), dim=0))
            for x in (shifted, tone)
        )
        assert alike > 0.9, f"channel {channel}"
        assert alike > before + 0.1, f"channel {channel}"
