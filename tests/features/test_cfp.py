from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from mmray.features import _cfp_kernels as kernels
from mmray.features import audio
from mmray.features.cfp import Cfp, Range, Settings

Doubles = NDArray[np.float64]

DEFAULT = Settings()
AT_8_KHZ = Settings(sample_rate_hz=8000, hop=160, window=768)
ODD_DFT = Settings(
    sample_rate_hz=11025, hop=200, window=1023, resolution_hz=5, bins_per_octave=36, powers=(0.5, 1, 0.7)
)
UNHURRIED = hypothesis_settings(deadline=None)

SMALL = Settings(sample_rate_hz=2000, hop=20, window=101, resolution_hz=10, max_hz=700, bins_per_octave=12)
SPARSE = Settings(sample_rate_hz=2000, hop=150, window=64, resolution_hz=10, max_hz=700, bins_per_octave=12)


def reference(samples: NDArray[Any], settings: Settings) -> Doubles:
    """CFP before scaling, from its definition in float64: whole transforms, whole matrices, frame after frame."""
    window = np.zeros(settings.window)
    phases = 2 * np.pi * np.arange(settings.window) / (settings.window - 1)
    for k, factor in enumerate((0.35875, -0.48829, 0.14128, -0.01168)):
        window += factor * np.cos(k * phases)
    half, size = (settings.window - 1) // 2, int(settings.sample_rate_hz / settings.resolution_hz)
    rate, step = settings.sample_rate_hz, settings.resolution_hz

    def pointed(values: Doubles, power: float, cut: int) -> Doubles:
        values = np.where(values > 0, values, 0)
        values[:cut] = 0
        values[size - cut :] = 0
        return values**power

    centres = []
    while settings.min_hz * 2 ** (len(centres) / settings.bins_per_octave) < settings.max_hz:
        centres.append(settings.min_hz * 2 ** (len(centres) / settings.bins_per_octave))
    over_frequency, over_quefrency = np.zeros((2, len(centres) - 1, size // 2 + 1))
    for row in range(1, len(centres) - 1):
        low, peak, high = centres[row - 1 : row + 2]

        def weight(hz: float, low: float = low, peak: float = peak, high: float = high) -> float:
            if low < hz <= peak:
                return (hz - low) / (peak - low)
            return (high - hz) / (high - peak) if peak < hz < high else 0

        first, last = round(low / step), round(high / step)
        for k in range(first, last + 1):
            over_frequency[row, k] = weight(k * rate / 2 / (round(size / 2) - 1)) if first < last else 1
        for k in range(round(rate / high), round(rate / low) + 1):
            over_quefrency[row, k] = weight(rate / k)

    frames = []
    for centre in range(settings.hop, len(samples), settings.hop):
        x, energy = np.zeros(size), 0.0
        for k in range(-half - 1, half - 1):
            if 0 <= centre + k < len(samples) - 1:
                x[k % size] = samples[centre + k] * window[half + k]  # at the first k it is the window's last value
                energy += window[half + k] ** 2
        spectrum = np.abs(np.fft.fft(x) / np.sqrt(energy)) ** settings.powers[0]
        cepstrum = np.fft.fft(spectrum).real / np.sqrt(size)
        cepstrum = pointed(cepstrum, settings.powers[1], round(rate / settings.max_hz))
        again = pointed(np.fft.fft(cepstrum).real / np.sqrt(size), settings.powers[2], round(settings.min_hz / step))
        first_half = slice(size // 2 + 1)
        frames.append(
            [
                over_frequency @ spectrum[first_half],
                over_frequency @ again[first_half],
                over_quefrency @ cepstrum[first_half],
            ]
        )
    return np.log(1 + np.array(frames).reshape(-1, 3, len(centres) - 1))


def scaled(raw: Doubles) -> Doubles:
    low, high = raw.min(axis=(0, 2), keepdims=True), raw.max(axis=(0, 2), keepdims=True)
    return (raw - low) / np.where(high > low, high - low, 1)


def voice(sample_rate_hz: int, num_samples: int, f0_hz: float = 220.0) -> NDArray[np.float32]:
    """Harmonics that fall off, of a tone that glides up with vibrato, in breath, with a silent pause."""
    t = np.arange(num_samples) / sample_rate_hz
    cycles = f0_hz * (t + 0.2 * t**2) + 0.3 * np.sin(2 * np.pi * 5.5 * t)
    sound = sum(np.sin(2 * np.pi * k * cycles) / k**1.5 for k in range(1, 9))
    sound = 0.2 * sound + 0.005 * np.random.default_rng(0).standard_normal(num_samples)
    sound[num_samples // 2 : num_samples // 2 + num_samples // 5] = 0
    return np.asarray(sound, np.float32)


def noise(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    return 0.1 * np.random.default_rng(seed).standard_normal(num_samples, np.float32)


def tones(sample_rate_hz: int, num_samples: int) -> NDArray[np.float32]:
    t = np.arange(num_samples) / sample_rate_hz
    return np.asarray(0.3 * np.sin(2 * np.pi * 220 * t) + 0.2 * np.sin(2 * np.pi * 517.3 * t), np.float32)


@pytest.mark.parametrize("settings", [DEFAULT, AT_8_KHZ, ODD_DFT], ids=["16 kHz", "8 kHz", "odd DFT"])
@pytest.mark.parametrize("sound", ["noise", "tones", "voice", "short"])
def test_agrees_with_the_definition(settings: Settings, sound: str) -> None:
    rate, num_samples = settings.sample_rate_hz, 40 * settings.hop + 77
    samples = {
        "noise": noise(num_samples),
        "tones": tones(rate, num_samples),
        "voice": voice(rate, num_samples),
        "short": noise(settings.hop + 60),  # shorter than the window: the frame reaches over both edges
    }[sound]
    expected = reference(samples, settings)
    feature = Cfp(settings)
    assert feature.raw(samples).shape == (settings.num_frames(len(samples)), 3, settings.num_bins) == expected.shape
    # A power of less than 1 turns rounding of what is nearly 0 into more: a few values in a pure tone, or where sound
    # borders on silence, differ by more than the others.
    for actual, right in ((feature.raw(samples), expected), (feature(samples), scaled(expected))):
        differences = np.abs(actual - right)
        assert differences.max() < (1e-5 if sound in ("noise", "short") else 5e-5)
        assert np.quantile(differences, 0.995) < 1e-5
        assert np.median(differences) < 2e-7


def test_agrees_with_the_definition_on_real_singing(real_data: Path) -> None:
    samples = audio.read(real_data / "mir1k" / "Wavfile" / "leon_7_04.flac", 16000)[20000:44000]
    np.testing.assert_allclose(Cfp(DEFAULT)(samples), scaled(reference(samples, DEFAULT)), rtol=0, atol=1e-5)


def test_published_size() -> None:
    frequencies_hz = DEFAULT.frequencies_hz()
    assert DEFAULT.num_bins == 256 == len(frequencies_hz) == len(DEFAULT.pitches_hz())
    assert (frequencies_hz[0], frequencies_hz[48]) == (31, 62)
    assert frequencies_hz[1] == DEFAULT.pitches_hz()[0]
    assert 1231 < frequencies_hz[255] < DEFAULT.pitches_hz()[255] < 1250
    assert Settings(sample_rate_hz=44100, bins_per_octave=60).num_bins == 320
    assert DEFAULT.hop_s == 0.016
    assert DEFAULT.frame_times_s(3) == pytest.approx([0.016, 0.032, 0.048], abs=1e-15)


@UNHURRIED
@given(st.integers(0, 2000))
def test_number_of_frames(num_samples: int) -> None:
    """One per multiple of the hop, but 0, at which there is a sample."""
    expected = len(range(SMALL.hop, num_samples, SMALL.hop))
    assert SMALL.num_frames(num_samples) == expected
    assert len(SMALL.frame_times_s(expected)) == expected


@UNHURRIED
@given(st.integers(0, 1400), st.lists(st.integers(0, 500), max_size=8), st.sampled_from([SMALL, SPARSE]))
def test_blocks_of_any_size_give_the_same_bits(num_samples: int, cuts: list[int], settings: Settings) -> None:
    samples, feature = noise(num_samples), Cfp(settings)
    whole = feature.raw(samples)
    assert whole.shape == (settings.num_frames(num_samples), 3, settings.num_bins)
    parts = list(feature.stream(np.split(samples, sorted(cut for cut in cuts if cut < num_samples))))
    assert np.array_equal(np.concatenate([whole[:0], *parts]), whole)


def test_single_samples_as_blocks() -> None:
    samples, feature = noise(1003), Cfp(SMALL)
    parts = feature.stream(samples[k : k + 1] for k in range(len(samples)))
    assert np.array_equal(np.concatenate(list(parts)), feature.raw(samples))


def test_frames_come_before_the_sound_ends() -> None:
    """Memory is bounded: of endless sound some frames come."""
    endless = (noise(500, seed) for seed in itertools.count())
    parts = list(itertools.islice(Cfp(SMALL).stream(endless), 5))
    assert all(0 < len(part) < 100 for part in parts)


@UNHURRIED
@given(st.integers(200, 1500))
def test_what_follows_changes_no_frame_before_it(num_samples: int) -> None:
    samples, feature = noise(1500), Cfp(SMALL)
    inside = SMALL.num_frames(num_samples - SMALL.window // 2)
    assert np.array_equal(feature.raw(samples[:num_samples])[:inside], feature.raw(samples)[:inside])


def test_threads_share_one_feature() -> None:
    feature = Cfp(SMALL)
    sounds = [noise(3000 + 7 * seed, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for together, alone in zip(pool.map(feature, sounds), map(Cfp(SMALL), sounds), strict=True):
            assert np.array_equal(together, alone)


@pytest.mark.parametrize("settings", [DEFAULT, AT_8_KHZ], ids=["16 kHz", "8 kHz"])
@pytest.mark.parametrize("f0_hz", [110.0, 220.0, 440.0])
def test_all_channels_show_the_pitch(settings: Settings, f0_hz: float) -> None:
    t = np.arange(settings.sample_rate_hz) / settings.sample_rate_hz
    sound = sum(0.1 * np.sin(2 * np.pi * f0_hz * k * t) / k for k in range(1, 8))
    spectrum, again, cepstrum = np.moveaxis(Cfp(settings)(np.asarray(sound, np.float32))[20:-20], 1, 0)
    frequencies_hz = settings.frequencies_hz()
    expected = np.argmin(np.abs(frequencies_hz - f0_hz))
    assert np.all(np.abs((spectrum * again * cepstrum).argmax(axis=1) - expected) <= 1)
    octave = np.abs(np.log2(frequencies_hz / f0_hz)) < 0.4
    for channel in (spectrum, again, cepstrum):
        peaks = np.where(octave, channel, 0).argmax(axis=1)
        assert np.all(np.abs(peaks - expected) <= 1)


@pytest.mark.parametrize("num_samples", [0, 1, 10, 256])
def test_a_clip_of_at_most_one_hop_has_no_frames(num_samples: int) -> None:
    assert Cfp(DEFAULT).raw(noise(num_samples)).shape == (0, 3, 256)
    assert Cfp(DEFAULT)(noise(num_samples)).shape == (0, 3, 256)
    assert list(Cfp(DEFAULT).stream([noise(num_samples)])) == []


def test_silence_is_all_zeros() -> None:
    assert not Cfp(DEFAULT)(np.zeros(5000, np.float32)).any()
    assert not Cfp(DEFAULT).raw(np.zeros(5000, np.float32)).any()


@pytest.mark.parametrize("sound", ["impulse", "constant", "faint", "loud"])
def test_extremes_stay_finite(sound: str) -> None:
    samples = np.zeros(6000, np.float32)
    samples[3000] = 1
    samples = {
        "impulse": samples, "constant": samples * 0 + 0.5, "faint": noise(6000) * np.float32(1e-30),
        "loud": noise(6000) * np.float32(1e14),
    }[sound]  # fmt: skip
    feature = Cfp(DEFAULT)(samples)
    assert np.isfinite(feature).all()
    assert feature.min() == 0
    assert feature.max() <= 1
    if sound == "impulse":  # its spectrum is flat: frames that don't reach it are silent
        frames = np.flatnonzero(feature.any(axis=(1, 2)))
        reached = np.abs((np.arange(len(feature)) + 1) * 256 - 3000) < 1024
        assert np.array_equal(frames, np.flatnonzero(reached))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_refuses_samples_that_are_no_sound(bad: float) -> None:
    samples = noise(9000)
    samples[7777] = bad
    with pytest.raises(ValueError, match="sample 7777 is "):
        Cfp(DEFAULT).raw(samples)
    with pytest.raises(ValueError, match="sample 7777 is "):
        list(Cfp(DEFAULT).stream([samples[:100], samples[100:8000], samples[8000:]]))


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((2, 1000), np.float32), r"shape \(2, 1000\)"),
        (np.zeros(1000, np.int16), "int16"),
        (np.zeros(1000, np.complex64), "complex64"),
    ],
)
def test_refuses_what_is_not_mono_sound(samples: NDArray[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Cfp(DEFAULT).raw(samples)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"window": 8000}, "window=8000 is not shorter than the DFT"),
        ({"min_hz": 3.9}, "min_hz=3.9 is below two bins"),
        ({"max_hz": 8000}, "max_hz=8000 is not below half of sample_rate_hz=16000"),
        ({"min_hz": 1240}, "fewer than 3 centre frequencies"),
        ({"min_hz": 2000}, "fewer than 3 centre frequencies"),
        ({"hop": 0}, "hop"),
        ({"window": 2}, "window"),
        ({"powers": (0.24, 0, 1)}, "powers"),
        ({"resolution_hz": -2}, "resolution_hz"),
        ({"bins": 48}, "bins"),
    ],
)
def test_refuses_settings_that_make_no_feature(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Settings(**values)


@UNHURRIED
@given(
    rate=st.integers(500, 20000),
    window=st.integers(3, 400),
    resolution_hz=st.floats(2, 100),
    min_hz=st.floats(5, 300),
    octaves=st.floats(0.1, 8),
    bins=st.integers(1, 60),
)
def test_settings_are_refused_or_work(
    rate: int, window: int, resolution_hz: float, min_hz: float, octaves: float, bins: int
) -> None:
    """No bin of a filterbank lies outside the transforms, which compiled code doesn't check."""
    try:
        settings = Settings(
            sample_rate_hz=rate, hop=100, window=window, resolution_hz=resolution_hz, min_hz=min_hz,
            max_hz=min_hz * 2**octaves, bins_per_octave=bins,
        )  # fmt: skip
    except ValidationError:
        return
    feature = Cfp(settings)
    for firsts, offsets, _ in (feature._over_frequency, feature._over_quefrency):
        assert firsts.min() >= 0
        assert np.max(firsts + np.diff(offsets)) <= settings.dft_size // 2 + 1
        assert len(firsts) == settings.num_bins
    raw = feature.raw(noise(350))
    assert raw.shape == (3, 3, settings.num_bins)
    assert np.isfinite(raw).all()


def test_range_over_parts_is_that_of_the_whole() -> None:
    raw = Cfp(SMALL).raw(noise(2000))
    seen = Range()
    for part in np.array_split(raw, 4):
        seen.add(part)
        seen.add(raw[:0])
    np.testing.assert_array_equal(seen.minimum, raw.min(axis=(0, 2)))
    np.testing.assert_array_equal(seen.maximum, raw.max(axis=(0, 2)))
    parts = np.concatenate([seen.scale(part) for part in np.array_split(raw, 3)])
    assert np.array_equal(parts, Cfp(SMALL)(noise(2000)))
    assert parts.dtype == np.float32
    assert np.array_equal(parts.min(axis=(0, 2)), [0, 0, 0])
    assert np.array_equal(parts.max(axis=(0, 2)), [1, 1, 1])


def test_range_of_a_constant_channel_scales_it_to_zeros() -> None:
    raw = np.random.default_rng(0).random((5, 3, 7), np.float32)
    raw[:, 1] = 3
    seen = Range()
    seen.add(raw)
    assert not seen.scale(raw)[:, 1].any()
    assert seen.scale(raw)[:, 2].max() == 1


def test_range_that_saw_nothing_scales_nothing() -> None:
    assert Range().scale(np.empty((0, 3, 7), np.float32)).shape == (0, 3, 7)
    with pytest.raises(ValueError, match="seen no frames"):
        Range().scale(np.zeros((1, 3, 7), np.float32))


@pytest.mark.parametrize("exponent", [0.12, 0.24, 0.5, 0.6, 1.0, 2.5])
def test_power_is_right_to_single_precision(exponent: float) -> None:
    x = np.geomspace(1e-12, 1e12, 100_003).astype(np.float32)[None]
    powers = np.empty_like(x)
    kernels.rectify_to_power(x, np.float32(1), 0, np.float32(exponent), powers)
    np.testing.assert_allclose(powers, x.astype(np.float64) ** np.float32(exponent), rtol=6e-6 * max(1, exponent))


@pytest.mark.parametrize("exponent", [0.6, 1.0])
def test_power_of_what_is_not_positive_is_zero(exponent: float) -> None:
    x = np.array([[5, -1, 0, -0.0, -1e30, 1e-45, 4]], np.float32)
    powers = np.empty_like(x)
    kernels.rectify_to_power(x, np.float32(0.25), 1, np.float32(exponent), powers)
    np.testing.assert_allclose(powers, [[0, 0, 0, 0, 0, 0, 1]], atol=1e-44)
