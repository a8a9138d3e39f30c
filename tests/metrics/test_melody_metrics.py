"""Melody metrics against hand computation and mir_eval, and their accumulation in any order and any split."""

from __future__ import annotations

import random
import warnings

import mir_eval.melody
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmray.metrics.melody import METRICS, MelodyMetrics, clip_scores, mean_scores, mir_eval_scores

# Silence, guesses, mir_eval's 0 cents, octaves, and pitches on and around the edge of the tolerance.
PITCHES = st.one_of(
    st.sampled_from([0.0, 0.0, -220.0, -110.0, 10.0, 110.0, 220.0, 440.0, 220 * 2 ** (50 / 1200), 226.0, 440.5]),
    st.floats(1, 2000),
    st.floats(-2000, -1),
)
HOPS = st.sampled_from([0.01, 0.016, 0.02, 256 / 44100, 0.032, 0.5])


@st.composite
def tracks(draw, starts=(0.0, 0.0, 0.01, 0.016, 1.0)):
    """(times, pitches): even or uneven hops, from 1 to 30 entries, voiced or not."""
    pitches = draw(st.lists(draw(st.sampled_from([PITCHES, st.just(0.0)])), min_size=1, max_size=30))
    hop, start = draw(HOPS), draw(st.sampled_from(starts))
    times = start + hop * np.arange(len(pitches))
    if draw(st.booleans()):
        times = times + np.cumsum(draw(st.lists(st.sampled_from([0.0, 0.003, 1.0]), min_size=len(times))))[: len(times)]
    return times, np.array(pitches)


def mir_eval_of(reference, estimate):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = mir_eval.melody.evaluate(*reference, *estimate)
    return {name.lower().replace(" ", "_"): value for name, value in scores.items()}


def test_hand_computed():
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    reference = [0, 0, 200, 200, 200, 200, 200, 200]
    estimate = [0, 300, 200, 205, 212, 400, -200, 0]
    # 205 Hz is 43 cents off and right, 212 Hz is 101 cents off; 400 Hz is right in chroma; -200 is a right guess.
    assert clip_scores(times, reference, times, estimate) == {
        "overall_accuracy": 3 / 8,
        "raw_pitch_accuracy": 3 / 6,
        "raw_chroma_accuracy": 4 / 6,
        "voicing_recall": 4 / 6,
        "voicing_false_alarm": 1 / 2,
    }


@settings(max_examples=400, deadline=None)
@given(tracks(), tracks())
def test_equal_to_mir_eval(reference, estimate):
    expected = mir_eval_of(reference, estimate)
    assert clip_scores(*reference, *estimate) == expected
    assert mir_eval_scores(*reference, *estimate) == expected


@settings(max_examples=100, deadline=None)
@given(tracks(), st.data())
def test_equal_to_mir_eval_where_the_estimate_is_near(reference, data):
    """The same times, or almost, which mir_eval doesn't resample; pitches that are mostly right."""
    times, pitches = reference
    assume(len(times) == 1 or np.diff(times).min() > 1e-3)
    jitter = data.draw(st.sampled_from([0.0, 1e-9, 1e-6, 1e-4]))
    factors = data.draw(
        st.lists(st.sampled_from([1.0, 1.02, 0.5, -1.0, 0.0]), min_size=len(times), max_size=len(times))
    )
    estimate = times + jitter, pitches * factors
    assert clip_scores(*reference, *estimate) == mir_eval_of(reference, estimate)


@pytest.mark.parametrize("start", [-0.5, -0.01])
def test_times_below_zero(start):
    times = start + 0.01 * np.arange(9)
    reference, estimate = (times, np.full(9, 200.0)), (times[:5] - 0.02, np.full(5, 203.0))
    assert clip_scores(*reference, *estimate) == mir_eval_of(reference, estimate)
    with pytest.raises(ValueError, match="before the first known, at 0"):
        clip_scores(*reference, times - start, estimate[1].repeat(2)[:9])


@pytest.mark.parametrize(("est_hop", "num"), [(0.016, 500), (0.0058, 1400), (0.1, 3), (0.02, 1)])
def test_equal_to_mir_eval_on_long_tracks(est_hop, num):
    rng = np.random.default_rng(num)
    ref_times, est_times = 0.01 + 0.02 * np.arange(400), est_hop * (1 + np.arange(num))
    sung = 220 * 2 ** (np.cumsum(rng.normal(0, 0.2, 400)) / 12) * (np.sin(np.arange(400) / 20) > -0.5)
    near = np.interp(est_times, ref_times, sung) * 2 ** (rng.normal(0, 0.05, num) + rng.integers(-1, 2, num))
    reference, estimate = (ref_times, sung), (est_times, near * rng.choice([1, 1, -1, 0], num))
    scores = clip_scores(*reference, *estimate)
    assert scores == mir_eval_of(reference, estimate)
    assert len(set(scores.values())) > 1 or num == 1


def test_real_labels(real_data):
    for path in sorted((real_data / "mir1k" / "PitchLabel").glob("*.pv"))[::25]:
        semitones = np.loadtxt(path)
        f0 = np.where(semitones > 0, 440 * 2 ** ((semitones - 69) / 12), 0)
        reference = 0.01 + 0.02 * np.arange(len(f0)), f0
        estimate = 0.016 * (1 + np.arange(int(1.25 * len(f0)))), np.roll(np.repeat(f0, 2), 3)[: int(1.25 * len(f0))]
        assert clip_scores(*reference, *estimate) == mir_eval_of(reference, estimate)
        assert clip_scores(*reference, *reference) == dict.fromkeys(METRICS, 1.0) | {"voicing_false_alarm": 0.0}


@pytest.mark.filterwarnings("error")
def test_no_warning_for_an_unvoiced_clip_or_uneven_times():
    for score in (clip_scores, mir_eval_scores):
        assert score([0, 1, 5], [0, 0, 0], [0, 2, 3], [0, 0, 0])["overall_accuracy"] == 1
        assert score([0], [0], [0], [100])["voicing_false_alarm"] == 1


@pytest.mark.parametrize(
    ("reference", "estimate", "message"),
    [
        (([], []), ([0], [1]), "the reference: .*shape"),
        (([0], [1]), ([], []), "the estimate: .*shape"),
        (([0, 1], [1]), ([0], [1]), "the reference: .*shape"),
        (([0, 1], [1, np.nan]), ([0], [1]), "the reference: entry 1 is nan Hz"),
        (([0, 1], [1, 2]), ([0, np.inf], [1, 2]), "the estimate: entry 1"),
        (([0, 2, 1], [1, 1, 1]), ([0], [1]), "the reference: time 2.0 s is followed by 1.0 s"),
        (([0, 1], [1, 1]), ([0, 1, 1], [1, 1, 1]), "the estimate: time 1.0 s is followed by 1.0 s"),
    ],
)
def test_what_cannot_be_scored(reference, estimate, message):
    for score in (clip_scores, mir_eval_scores):
        with pytest.raises(ValueError, match=message):
            score(*reference, *estimate)


def random_clips(count):
    rng = np.random.default_rng(count)
    for i in range(count):
        n = int(rng.integers(1, 50))
        times = 0.02 * np.arange(n)
        ref = rng.choice([0.0, 200.0], n)
        yield f"clip-{i}", times, ref, times, np.where(rng.random(n) < 0.3, 0, ref * rng.choice([1, 1.01, 2.0], n))


def test_mean_over_clips():
    metrics = MelodyMetrics()
    metrics.update("short", [0], [200], [0], [200])
    metrics.update("long", np.arange(10), np.full(10, 200.0), np.arange(10), np.zeros(10))
    assert metrics.compute() == {
        "overall_accuracy": 0.5,
        "raw_pitch_accuracy": 0.5,
        "raw_chroma_accuracy": 0.5,
        "voicing_recall": 0.5,
        "voicing_false_alarm": 0.0,
    }
    assert list(metrics.compute()) == list(METRICS)
    assert [clip["id"] for clip in metrics.per_clip()] == ["long", "short"]
    assert metrics.per_clip()[1]["overall_accuracy"] == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_any_order_and_split_gives_the_same_numbers(seed, num_parts):
    clips = list(random_clips(37))
    whole = MelodyMetrics()
    for clip in clips:
        whole.update(*clip)
    random.Random(seed).shuffle(clips)
    parts = [MelodyMetrics() for _ in range(num_parts + 1)]  # one part stays empty
    for i, clip in enumerate(clips):
        parts[i % num_parts].update(*clip)
    merged = MelodyMetrics(mir_eval_scores)
    for part in reversed(parts):
        merged.merge(part.state())
    assert merged.compute() == whole.compute()
    assert merged.per_clip() == whole.per_clip()


def test_state_is_plain_arrays():
    metrics = MelodyMetrics()
    assert {k: v.shape for k, v in metrics.state().items()} == {"ids": (0,), "scores": (0, 5)}
    metrics.update("娘子", [0], [200], [0], [200])
    state = metrics.state()
    assert state["ids"].tolist() == ["娘子"]
    assert state["scores"].dtype == np.float64
    assert all(array.dtype != object for array in state.values())


def test_refused_clips_leave_it_as_it_was():
    metrics = MelodyMetrics()
    with pytest.raises(ValueError, match="no clips were scored"):
        metrics.compute()
    with pytest.raises(ValueError, match="no clips"):
        mean_scores([])
    metrics.update("a", [0], [200], [0], [200])
    before = metrics.compute()
    with pytest.raises(ValueError, match="clip 'b' has no label"):
        metrics.update("b", [], [], [0], [200])
    with pytest.raises(ValueError, match="clip 'b': the estimate: entry 0"):
        metrics.update("b", [0], [200], [0], [np.nan])
    with pytest.raises(ValueError, match="clip 'a' was scored twice"):
        metrics.update("a", [0], [200], [0], [100])
    with pytest.raises(ValueError, match="clip 'a' was scored twice"):
        metrics.merge({"ids": np.array(["c", "a"]), "scores": np.zeros((2, 5))})
    assert metrics.compute() == before
    assert len(metrics.per_clip()) == 1
