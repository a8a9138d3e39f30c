"""Altered sound: pitch and tempo against librosa in float64, levels by hand, random numbers by item; refusals."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mmray.features import audio
from mmray.features.audio_augment import (
    MAX_RATE,
    MIN_RATE,
    Settings,
    add_noise,
    augment,
    gain,
    pitch_shift,
    rng_of,
    time_stretch,
)

RATE_HZ = 16000


def chords(seconds=4.0, seed=0):
    """Chords that change twice a second, each fading, over soft noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    sound = 0.002 * rng.standard_normal(len(t))
    for start in range(0, len(t), RATE_HZ // 2):
        part = t[start : start + RATE_HZ // 2]
        for f0_hz in rng.choice([220, 247, 277, 330, 370, 440], 3, replace=False):
            for harmonic in range(1, 9):
                sound[start : start + len(part)] += (
                    0.1 / harmonic * np.exp(-3 * (part - part[0])) * np.sin(2 * np.pi * harmonic * f0_hz * part)
                )
    return sound.astype(np.float32)


def noise(num_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def snr_db(reference, sound):
    assert sound.shape == reference.shape
    return 10 * np.log10(np.sum(reference**2) / np.sum((reference - sound) ** 2))


def strongest_hz(sound):
    inner = sound[4000:-4000]
    return np.abs(np.fft.rfft(inner * np.hanning(len(inner)))).argmax() * RATE_HZ / len(inner)


def librosa_stretch(samples, rate):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of frames longer than the clip
        return librosa.effects.time_stretch(samples.astype(np.float64), rate=rate)


def librosa_shift(samples, semitones):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return librosa.effects.pitch_shift(samples.astype(np.float64), sr=RATE_HZ, n_steps=semitones)


@pytest.mark.parametrize("rate", [0.8, 1.2, 0.5, 2.0, 0.1, 7.3, 0.999, MIN_RATE, MAX_RATE])
def test_stretch_is_librosas_in_float64(rate):
    for samples in (chords(), noise(40001)):
        ours = time_stretch(samples, rate)
        assert ours.dtype == np.float32
        assert snr_db(librosa_stretch(samples, rate), ours) > 100


@pytest.mark.parametrize("semitones", [2, -2, 0.5, 12, -12, 24, -24])
def test_shift_is_librosas_in_float64(semitones):
    for samples in (chords(), noise(40001)):
        ours = pitch_shift(samples, RATE_HZ, semitones)
        assert ours.dtype == np.float32
        assert snr_db(librosa_shift(samples, semitones), ours) > 100


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7000), st.floats(MIN_RATE, MAX_RATE).filter(lambda rate: rate != 1))
def test_stretch_of_any_length_and_rate(num_samples, rate):
    """Clips shorter than a window or a hop, too: their edges are where windows don't all overlap."""
    samples = noise(num_samples, seed=num_samples)
    if round(num_samples / rate) < 1:
        with pytest.raises(ValueError, match="give a longer clip"):
            time_stretch(samples, rate)
    else:
        # Where few samples reach under a window there is little but rounding to compare.
        wanted = librosa_stretch(samples, rate)
        np.testing.assert_allclose(time_stretch(samples, rate), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 100, 511, 513, 2047, 2049])
def test_shift_of_short_clips(num_samples):
    samples = noise(num_samples)
    for semitones in (-7, -2, 2, 7):
        wanted = librosa_shift(samples, semitones)
        np.testing.assert_allclose(pitch_shift(samples, RATE_HZ, semitones), wanted, rtol=0, atol=1e-5)


def test_silence_before_within_and_after():
    """Phases have no history in silence, and must find one behind it."""
    samples = chords(6)
    for start, stop in ((0, 20000), (40000, 50000), (80000, 96000)):
        samples[start:stop] = 0
    for rate in (0.8, 1.25):
        ours, wanted = time_stretch(samples, rate), librosa_stretch(samples, rate)
        assert snr_db(wanted, ours) > 90
        # The first frame with sound is centred less than 1,024 samples before it; a step may look one frame ahead.
        assert not ours[: round((20000 - 1024 - 512) / rate) - 1024].any()
    for nothing in (np.zeros(9000, np.float32), np.full(9000, 1e-30, np.float32)):
        np.testing.assert_allclose(time_stretch(nothing, 0.8), np.zeros(11250), atol=1e-29)
        np.testing.assert_allclose(pitch_shift(nothing, RATE_HZ, 3), np.zeros(9000), atol=1e-29)


def test_any_level_is_treated_alike():
    samples = chords(1)
    for level in (2.0**-30, 2.0**40):
        scaled = time_stretch(samples * np.float32(level), 0.8)
        assert snr_db(librosa_stretch(samples, 0.8), scaled.astype(np.float64) / level) > 80


def test_shift_moves_a_tone_and_stretch_leaves_it():
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE_HZ) / RATE_HZ).astype(np.float32)
    for semitones in (-5, 2):
        shifted = strongest_hz(pitch_shift(tone, RATE_HZ, semitones))
        assert shifted == pytest.approx(440 * 2 ** (semitones / 12), rel=2e-3)
    for rate in (0.8, 1.2):
        assert strongest_hz(time_stretch(tone, rate)) == pytest.approx(440, rel=2e-3)


def test_nothing_asked_is_nothing_done():
    samples = noise(3000)
    for same in (
        time_stretch(samples, 1),
        pitch_shift(samples, RATE_HZ, 0),
        gain(samples, 0),
        augment(samples, RATE_HZ, Settings(), rng_of(0, "a", 1)),
        augment(samples, RATE_HZ, Settings(time_stretch_rates=[1.0]), rng_of(0, "a", 1)),
    ):
        assert np.array_equal(same, samples)
        assert not np.shares_memory(same, samples)


def test_arguments_of_other_kinds():
    """Double precision, a list, strides and a read-only array; none is altered."""
    samples = noise(6000)
    wanted = time_stretch(samples, 0.8)
    assert np.array_equal(time_stretch(samples.astype(np.float64), 0.8), wanted)
    assert np.array_equal(time_stretch(samples.tolist(), 0.8), wanted)
    assert np.array_equal(time_stretch(np.repeat(samples, 2)[::2], 0.8), wanted)
    fixed = samples.copy()
    fixed.setflags(write=False)
    everything = Settings(time_stretch_rates=[0.8], gain_db=[-6, 6], noise_snr_db=[10, 30])
    augment(fixed, RATE_HZ, everything, rng_of(0, "a", 1))
    pitch_shift(fixed, RATE_HZ, 2)
    assert np.array_equal(time_stretch(fixed, 0.8), wanted)


def test_threads_share_nothing():
    clips = [noise(20000, seed) for seed in range(8)]
    alone = [time_stretch(clip, 0.8) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda clip: time_stretch(clip, 0.8), clips))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_gain_by_hand():
    np.testing.assert_allclose(gain([0.1, -0.5], 20), [1, -5], rtol=1e-6)  # not clipped
    np.testing.assert_allclose(gain([0.1, -0.5], -6.0205999), [0.05, -0.25], rtol=1e-6)


@pytest.mark.parametrize("ratio_db", [-10, 0, 20, 60])
def test_noise_has_the_power_asked_for_and_is_white(ratio_db):
    samples = chords(3)
    noisy = add_noise(samples, ratio_db, np.random.default_rng(0))
    added = noisy.astype(np.float64) - samples
    assert 10 * np.log10(np.mean(samples.astype(np.float64) ** 2) / np.mean(added**2)) == pytest.approx(
        ratio_db, abs=0.02
    )
    added /= added.std()
    power = np.abs(np.fft.rfft(added)) ** 2 / len(added)
    assert power[1:].reshape(-1).size > 1000
    assert np.abs([np.mean(band) - 1 for band in np.array_split(power, 8)]).max() < 0.15
    assert np.mean(added**4) == pytest.approx(3, abs=0.15)  # the fourth moment of a normal distribution


def test_noise_of_silence_is_silence():
    assert not add_noise(np.zeros(100, np.float32), 10, np.random.default_rng(0)).any()


def test_random_numbers_depend_on_seed_item_and_turn_alone():
    numbers = {
        key: rng_of(*key).random()
        for key in [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (-1, "a", 1), (0, "", 1)]
    }
    assert len(set(numbers.values())) == len(numbers)
    assert rng_of(0, "1:a", 1).random() != rng_of(0, "a", 11).random() != rng_of(1, "1:a", 0).random()
    assert rng_of(0, "a", 1).random() == numbers[0, "a", 1]
    program = "from mmray.features.audio_augment import rng_of; print(repr(rng_of(0, 'a', 1).random()))"
    for hash_seed in ("1", "2"):  # Python's own hash of a text differs between processes
        answer = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(answer.stdout) == numbers[0, "a", 1]


def test_draws_are_spread_evenly():
    draws = np.array([rng_of(5, f"track@{second}", 1).random() for second in range(3000)])
    counts = np.histogram(draws, 10, (0, 1))[0]
    assert np.abs(counts - 300).max() < 85  # five standard deviations


def test_augment_is_reproducible_and_differs_by_turn():
    samples = chords(1)
    everything = Settings(
        pitch_shift_semitones=[-2, 2], time_stretch_rates=[0.8, 1.2], gain_db=[-6, 6], noise_snr_db=[10, 30]
    )
    first = augment(samples, RATE_HZ, everything, rng_of(1, "a@30", 1))
    assert np.array_equal(augment(samples, RATE_HZ, everything, rng_of(1, "a@30", 1)), first)
    others = [augment(samples, RATE_HZ, everything, rng_of(1, "a@30", turn)) for turn in range(2, 6)]
    assert not any(np.array_equal(other, first) for other in others)


def test_augment_draws_one_choice_of_one_kind():
    samples = chords(0.1)
    choices = Settings(pitch_shift_semitones=[-2, 2, 5], time_stretch_rates=[0.8])
    assert choices.kinds == ("pitch_shift", "time_stretch")
    made = {
        **{semitones: pitch_shift(samples, RATE_HZ, semitones) for semitones in (-2, 2, 5)},
        0.8: time_stretch(samples, 0.8),
    }

    def drawn(kind=None):
        counts = dict.fromkeys(made, 0)
        for turn in range(300):
            sound = augment(samples, RATE_HZ, choices, rng_of(0, "a", turn), kind)
            counts[next(choice for choice, wanted in made.items() if np.array_equal(sound, wanted))] += 1
        return counts

    counts = drawn()
    assert abs(counts[0.8] - 150) < 44  # kinds are equally likely, then choices; five standard deviations
    assert all(abs(counts[semitones] - 50) < 33 for semitones in (-2, 2, 5))
    assert drawn("time_stretch") == {-2: 0, 2: 0, 5: 0, 0.8: 300}
    assert drawn("pitch_shift")[0.8] == 0
    with pytest.raises(ValueError, match="kind='pitch_shift' has no choices in the settings; those that have: none"):
        augment(samples, RATE_HZ, Settings(gain_db=[0, 1]), rng_of(0, "a", 1), "pitch_shift")


def test_augment_keeps_gain_and_noise_within_their_ranges():
    samples = chords(0.5)
    gains = []
    for turn in range(300):
        louder = augment(samples, RATE_HZ, Settings(gain_db=[-9, 3]), rng_of(0, "a", turn))
        gains.append(20 * math.log10(np.dot(louder, samples) / np.dot(samples, samples)))
    assert -9.001 < min(gains) < -8.5
    assert 2.5 < max(gains) < 3.001
    noisy = augment(samples, RATE_HZ, Settings(gain_db=[6, 6], noise_snr_db=[15, 15]), rng_of(0, "a", 1))
    assert snr_db(gain(samples, 6).astype(np.float64), noisy) == pytest.approx(15, abs=0.05)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pitch_shift_semitones": [49]}, "less than or equal to 48"),
        ({"time_stretch_rates": [0.8, 0]}, "greater than or equal to 0.0625"),
        ({"time_stretch_rates": [math.nan]}, "time_stretch_rates"),
        ({"gain_db": [6, -6]}, r"\[6, -6\] is not \[lowest, highest\]"),
        ({"noise_snr_db": [10]}, "noise_snr_db"),
        ({"quality": "best"}, "'fast' or 'high'"),
        ({"pitch_shift": [2]}, "pitch_shift"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e16])
def test_samples_that_are_no_sound(bad):
    samples = noise(3000)
    samples[1234] = bad
    for alter in (
        lambda x: time_stretch(x, 0.8),
        lambda x: pitch_shift(x, RATE_HZ, 2),
        lambda x: gain(x, 3),
        lambda x: add_noise(x, 10, np.random.default_rng(0)),
        lambda x: augment(x, RATE_HZ, Settings(), rng_of(0, "a", 1)),
    ):
        with pytest.raises(ValueError, match=r"sample 1234 is .* must be finite"):
            alter(samples)


def test_arguments_that_make_no_sense():
    samples = noise(3000)
    for wrong in (np.zeros(0, np.float32), np.zeros((2, 100), np.float32), np.zeros(100, np.int16)):
        with pytest.raises(ValueError, match=r"give \(n,\) floats"):
            time_stretch(wrong, 0.8)
    for rate in (0, -1, math.nan, 0.06, 17):
        with pytest.raises(ValueError, match=f"rate={rate} is not from 0.0625 to 16"):
            time_stretch(samples, rate)
    for semitones in (-49, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"semitones=.* is not from -48 to 48"):
            pitch_shift(samples, RATE_HZ, semitones)
    with pytest.raises(ValueError, match="1 samples at 16 times their speed"):
        pitch_shift(samples[:1], RATE_HZ, -48)
    with pytest.raises(ValueError, match="sample_rate_hz=0 is not above 0"):
        pitch_shift(samples, 0, 2)
    with pytest.raises(ValueError, match="quality='best'; choose fast or high"):
        time_stretch(samples, 0.8, "best")
    with pytest.raises(ValueError, match="db=nan"):
        gain(samples, math.nan)
    with pytest.raises(ValueError, match="snr_db=inf"):
        add_noise(samples, math.inf, np.random.default_rng(0))


def test_high_quality_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "python_stretch", None)
    monkeypatch.setitem(sys.modules, "python_stretch.Signalsmith", None)
    with pytest.raises(ValueError, match=r'quality: high needs one more package: pip install "mmray\[stretch\]"'):
        time_stretch(noise(3000), 0.8, "high")


def spread_s(sound, centre_s):
    """Where the energy within 0.1 s of a place has its centre, from there, and its standard deviation."""
    centre, half = round(centre_s * RATE_HZ), RATE_HZ // 10
    energy = sound[centre - half : centre + half].astype(np.float64) ** 2
    times = np.arange(-half, half) / RATE_HZ
    mean = np.average(times, weights=energy)
    return abs(mean), np.sqrt(np.average((times - mean) ** 2, weights=energy))


def test_high_quality_keeps_time_pitch_and_clicks():
    pytest.importorskip("python_stretch")
    tone = np.sin(2 * np.pi * 440 * np.arange(2 * RATE_HZ) / RATE_HZ).astype(np.float32)
    clicks = 0.01 * noise(2 * RATE_HZ)
    places = (0.3, 0.7123, 1.1, 1.6)
    for place in places:
        clicks[round(place * RATE_HZ) - 10 :][:20] += np.hanning(20)
    for rate in (0.8, 1.2):
        stretched = time_stretch(tone, rate, "high", RATE_HZ)
        assert stretched.shape == (round(len(tone) / rate),)
        assert strongest_hz(stretched) == pytest.approx(440, rel=2e-3)
        fast, high = (time_stretch(clicks, rate, quality) for quality in ("fast", "high"))
        for place in places:
            (moved, width), (_, smeared) = spread_s(high, place / rate), spread_s(fast, place / rate)
            assert moved < 0.001
            assert width < 0.004 < 0.01 < smeared
    for semitones in (-2, 2):
        shifted = pitch_shift(tone, RATE_HZ, semitones, "high")
        assert shifted.shape == tone.shape
        assert strongest_hz(shifted) == pytest.approx(440 * 2 ** (semitones / 12), rel=2e-3)
        assert spread_s(pitch_shift(clicks, RATE_HZ, semitones, "high"), 0.7123)[0] < 0.001


def test_high_quality_of_short_clips_and_low_rates():
    pytest.importorskip("python_stretch")
    for num_samples in (1, 2, 7, 100, 1919, 2500):
        samples = noise(num_samples)
        for rate in (MIN_RATE, 0.8, 1.2, 2):
            if round(num_samples / rate):
                sound = time_stretch(samples, rate, "high")
                assert sound.shape == (round(num_samples / rate),)
                assert np.isfinite(sound).all()
        assert np.array_equal(pitch_shift(samples, RATE_HZ, 3, "high"), pitch_shift(samples, RATE_HZ, 3, "high"))
    with pytest.raises(ValueError, match="high needs a sample rate of 1000 Hz or more, not 50"):
        time_stretch(noise(100), 0.8, "high", 50)


@pytest.mark.parametrize("name", ["angry", "happy", "sad"])
def test_real_music(real_data, name):
    """Bins of real music are weak for long and strong later: their phases must not have been lost meanwhile."""
    path = sorted((real_data / "emotify" / name).glob("*.mp3"))[0]
    samples = audio.read(path, RATE_HZ)[: 10 * RATE_HZ]
    assert snr_db(librosa_stretch(samples, 0.8), time_stretch(samples, 0.8)) > 80
    assert snr_db(librosa_shift(samples, 2), pitch_shift(samples, RATE_HZ, 2)) > 80


def test_import_is_light():
    program = (
        "import sys, mmray.features.audio_augment; print({'torch', 'librosa', 'soxr', 'ducc0'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
