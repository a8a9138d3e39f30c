"""Contours against mir_eval's resampling, nearest centres by search, and paths over all pairs of states."""

from __future__ import annotations

import warnings
from itertools import pairwise

import mir_eval.melody
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.features.contour import (
    decode_argmax,
    decode_threshold,
    decode_viterbi,
    fit_threshold,
    nearest_bins,
    to_grid,
    voicing_scores,
)

CENTRES_HZ = 31 * 2 ** (np.arange(256) / 48)
INF = float("inf")


def random_posteriors(seed, num_frames, num_bins, concentration=0.3):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(num_bins + 1, concentration), num_frames).astype(np.float32)


# Labels on a grid


def mir_eval_to_grid(times, f0, grid):
    """mir_eval's own resampling, with the first entry held from 0 on as mir_eval.melody.to_cent_voicing does."""
    if times[0] > 0:
        times, f0 = np.insert(times, 0, 0), np.insert(f0, 0, f0[0])
    pitches, voicing = mir_eval.melody.freq_to_voicing(f0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pitches, voicing = mir_eval.melody.resample_melody_series(times, pitches, voicing, grid)
    return pitches * voicing


@settings(max_examples=300, deadline=None)
@given(
    f0=st.lists(st.sampled_from([0.0, 0.0, 100.0, 110.5, 431.1, -200.0]), min_size=1, max_size=40),
    start=st.sampled_from([0.0, 0.01, 0.3]),
    hop=st.sampled_from([0.01, 0.02, 0.032, 256 / 44100]),
    grid_start=st.sampled_from([0.0, 0.016, 0.5]),
    num_frames=st.integers(1, 60),
)
def test_grid_is_mir_evals(f0, start, hop, grid_start, num_frames):
    times, grid = start + hop * np.arange(len(f0)), grid_start + 0.016 * np.arange(num_frames)
    assert np.array_equal(to_grid(times, f0, grid), mir_eval_to_grid(times, np.array(f0), grid))


def test_no_pitch_is_mixed_with_silence():
    on_grid = to_grid([0, 1, 2, 3, 4], [100, 200, 0, 0, 400], [0.5, 1, 1.9, 2, 3.9, 4])
    assert on_grid.tolist() == [150, 200, 200, 0, 0, 400]


def test_times_that_are_all_but_the_same_are_taken_as_they_are():
    times = 0.016 * np.arange(1, 100)
    f0 = np.random.default_rng(0).uniform(100, 400, 99)
    assert np.array_equal(to_grid(np.insert(times, 0, 0), np.insert(f0, 0, 0), np.insert(times, 0, 0) + 1e-9)[1:], f0)


def test_before_and_after_the_label():
    assert to_grid([1, 2], [100, 200], [0, 0.5, 2.5, 3]).tolist() == [100, 100, 200, 0]
    assert to_grid([0], [100], []).tolist() == []
    with pytest.raises(ValueError, match=r"asked for at -1.0 s, before the first known, at 0.0 s"):
        to_grid([0, 1], [100, 200], [-1, 0, 1])


@pytest.mark.parametrize(
    ("times", "f0", "message"),
    [([], [], "shape"), ([0, 1], [1], "shape"), ([0, 0], [1, 1], "followed by"), ([0, np.nan], [1, 1], "finite")],
)
def test_labels_that_are_none(times, f0, message):
    with pytest.raises(ValueError, match=f"the label: .*{message}"):
        to_grid(times, f0, [0.0])


# Rows


@given(st.lists(st.one_of(st.floats(-100, 3000), st.sampled_from([0.0, *CENTRES_HZ.tolist()])), max_size=20))
def test_nearest_bins_by_search(f0):
    rows = nearest_bins(f0, CENTRES_HZ)
    assert rows.dtype == np.int64
    for pitch, row in zip(f0, rows.tolist(), strict=True):
        if pitch <= 0:
            assert row == 0
        else:
            off_cents = np.abs(1200 * np.log2(pitch / CENTRES_HZ))
            assert off_cents[row - 1] <= off_cents.min() + 1e-6


def test_bins_of_centres_and_beyond():
    assert nearest_bins(CENTRES_HZ, CENTRES_HZ).tolist() == list(range(1, 257))
    assert nearest_bins([1, 30.9, 1230, 5000, 0, -440], CENTRES_HZ).tolist() == [1, 1, 256, 256, 0, 0]
    assert nearest_bins([1, 99], [50.0]).tolist() == [1, 1]


@pytest.mark.parametrize("centres", [[], [0, 1], [2, 1], [1, 1], [[1, 2]], [np.nan]])
def test_centres_that_are_none(centres):
    with pytest.raises(ValueError, match="pitches_hz"):
        nearest_bins([100], centres)


# Frame by frame


def test_argmax_by_hand():
    posteriors = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2]]
    contour = decode_argmax(posteriors, [100, 200])
    assert contour.f0_hz.tolist() == [0, 200, 0]  # a tie with "no melody" is unvoiced
    assert contour.f0_hz.dtype == np.float64
    assert contour.confidence.dtype == np.float32
    np.testing.assert_allclose(contour.confidence, [0.4, 0.8, 0.6], rtol=1e-6)


@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.3, 3.0]))
def test_threshold_of_a_half_is_argmax(seed, concentration):
    p = random_posteriors(seed, 20, 7, concentration)
    centres = 100.0 + np.arange(7)
    assert np.array_equal(decode_threshold(p, centres, 0.5).f0_hz, decode_argmax(p, centres).f0_hz)


def test_threshold_is_of_the_voicing_score():
    p = np.array([[0.75, 0.25, 0], [0.1, 0.3, 0.6], [1, 0, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(voicing_scores(p), [0.25, 6 / 7, 0, 0.5])
    assert decode_threshold(p, [100, 200], 0.2).f0_hz.tolist() == [100, 200, 0, 100]
    assert decode_threshold(p, [100, 200], 0.25).f0_hz.tolist() == [0, 200, 0, 100]
    assert decode_threshold(p, [100, 200], 1).f0_hz.tolist() == [0, 0, 0, 0]


def grid_accuracy(f0, label):
    right = (label <= 0) & (f0 == 0)
    both = (label > 0) & (f0 > 0)
    right[both] = np.abs(1200 * np.log2(f0[both] / label[both])) < 50
    return right.mean()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_fitted_threshold_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    centres = 110 * 2 ** (np.arange(6) / 24)
    clips = []
    for n in (13, 40, 1):
        p = random_posteriors(rng.integers(1000), n, 6)
        label = np.where(rng.random(n) < 0.4, rng.choice([0, -100.0], n), decode_threshold(p, centres, 0).f0_hz * 1.02)
        p[:, 0] *= rng.choice([0.1, 10])  # as of a model that is too sure or too shy
        clips.append((p, label))

    def accuracy(threshold):
        return np.mean([grid_accuracy(decode_threshold(p, centres, threshold).f0_hz, label) for p, label in clips])

    fitted = fit_threshold(iter(clips), centres)
    candidates = np.concatenate([[0, 0.5, 1], *(voicing_scores(p) for p, _ in clips)])
    assert 0 <= fitted <= 1
    assert accuracy(fitted) == pytest.approx(max(accuracy(threshold) for threshold in candidates), abs=1e-12)
    if accuracy(0.5) >= accuracy(fitted):
        assert fitted == 0.5


def test_threshold_needs_frames_and_labels():
    with pytest.raises(ValueError, match="no frame"):
        fit_threshold([(np.zeros((0, 3)), [])], [100, 200])
    with pytest.raises(ValueError, match=r"label has shape \(2,\).*expected \(1,\)"):
        fit_threshold([(np.ones((1, 3)), [0, 0])], [100, 200])


@pytest.mark.parametrize("decode", [decode_argmax, decode_viterbi])
def test_posteriors_of_another_shape(decode):
    for shape in ((4, 2), (4, 4), (3,)):
        with pytest.raises(ValueError, match=r"expected \(frames, 3\)"):
            decode(np.zeros(shape), [100, 200])


# Paths


def path_cost(rows, log_p, centres, semitone_cost, leap_cost, switch_cost):
    cost = -log_p[np.arange(len(rows)), rows].sum()
    for a, b in pairwise(rows.tolist()):
        if (a == 0) != (b == 0):
            cost += switch_cost
        elif a != b:
            cost += min(abs(12 * np.log2(centres[a - 1] / centres[b - 1])) * semitone_cost, leap_cost)
    return cost


def best_path_over_all_pairs(log_p, centres, semitone_cost, leap_cost, switch_cost):
    pitches = np.append(1.0, centres)
    costs = np.minimum(np.abs(12 * np.log2(pitches[:, None] / pitches)) * semitone_cost, leap_cost)
    costs[0, 1:] = costs[1:, 0] = switch_cost
    costs[0, 0] = 0
    score, backward = log_p[0], []
    for frame in log_p[1:]:
        entering = score[:, None] - costs
        backward.append(entering.argmax(axis=0))
        score = entering.max(axis=0) + frame
    path = [int(score.argmax())]
    for came_from in reversed(backward):
        path.append(int(came_from[path[-1]]))
    return np.array(path[::-1])


COSTS = st.sampled_from([0.0, 0.1, 0.7, 2.0, 10.0, 1e5])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 12), COSTS, COSTS, COSTS)
def test_viterbi_against_all_pairs(seed, num_frames, num_bins, semitone_cost, leap_cost, switch_cost):
    p = random_posteriors(seed, num_frames, num_bins)
    centres = np.sort(np.random.default_rng(seed).uniform(50, 900, num_bins))
    costs = (semitone_cost, leap_cost, switch_cost)
    log_p = np.log(np.maximum(p, np.finfo(np.float32).tiny)).astype(np.float64)
    contour = decode_viterbi(p, centres, *costs)
    rows = np.where(contour.f0_hz > 0, 1 + np.searchsorted(centres, contour.f0_hz), 0)
    expected = best_path_over_all_pairs(log_p, centres, *costs)
    # Different paths may cost the same.
    assert path_cost(rows, log_p, centres, *costs) == pytest.approx(path_cost(expected, log_p, centres, *costs))
    assert np.array_equal(contour.confidence, 1 - p[:, 0])


def test_viterbi_without_costs_is_argmax():
    p = random_posteriors(1, 200, 256)
    assert np.array_equal(decode_viterbi(p, CENTRES_HZ, 0, 0, 0).f0_hz, decode_argmax(p, CENTRES_HZ).f0_hz)


def test_viterbi_bridges_what_is_short_and_follows_what_is_sure():
    rows = np.array([0] * 10 + [100] * 20 + [0] + [102] * 20 + [150] + [103] * 20 + [160] * 20 + [0] * 10)
    p = np.full((len(rows), 257), 0.4 / 256, np.float32)
    p[np.arange(len(rows)), rows] = 0.6
    assert np.array_equal(nearest_bins(decode_argmax(p, CENTRES_HZ).f0_hz, CENTRES_HZ), rows)
    smooth = nearest_bins(decode_viterbi(p, CENTRES_HZ, 1, 4, 6).f0_hz, CENTRES_HZ)
    bridged = [30, 51]  # the gap and the octave error; the leap of a whole note stays
    assert smooth[30] in (100, 101, 102)
    assert smooth[51] in (102, 103)
    assert np.array_equal(np.delete(smooth, bridged), np.delete(rows, bridged))


def test_viterbi_forbids_by_infinity():
    p = random_posteriors(3, 50, 8)
    centres = 100.0 + np.arange(8)
    rows = decode_viterbi(p, centres, INF, INF, INF).f0_hz
    assert len(set(rows.tolist())) == 1
    best = np.log(p).sum(axis=0).argmax()
    assert rows[0] == np.append(0, centres)[best]
    unswitched = decode_viterbi(p, centres, 0, 0, INF).f0_hz
    assert (unswitched > 0).all() or (unswitched == 0).all()


def test_viterbi_of_little():
    assert decode_viterbi(np.zeros((0, 3)), [100, 200]).f0_hz.tolist() == []
    assert decode_viterbi([[0.1, 0.2, 0.7]], [100, 200]).f0_hz.tolist() == [200]
    assert decode_viterbi([[0.1, 0.9], [0.6, 0.4], [0.1, 0.9]], [100]).f0_hz.tolist() == [100, 100, 100]
    assert decode_viterbi([[1, 0, 0], [0, 0, 1], [1, 0, 0]], [100, 200]).f0_hz.tolist() == [0, 200, 0]


def test_viterbi_refuses_rewards():
    with pytest.raises(ValueError, match="leap_cost=-1; expected 0 or more"):
        decode_viterbi(np.ones((1, 3)), [100, 200], leap_cost=-1)
    with pytest.raises(ValueError, match="switch_cost=nan"):
        decode_viterbi(np.ones((1, 3)), [100, 200], switch_cost=float("nan"))


@pytest.mark.parametrize("decode", [decode_argmax, decode_viterbi])
def test_a_diverged_model_is_named(decode):
    p = random_posteriors(0, 5, 2)
    p[3] = np.nan
    with pytest.raises(ValueError, match="frame 3 are NaN"):
        decode(p, [100, 200])
