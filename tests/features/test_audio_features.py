from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from mmray.features import audio
from mmray.features.audio_features import Extractor, Settings

Array = NDArray[np.float32]

DEFAULT = Settings()
SMALL = Settings(sample_rate_hz=4000, n_fft=256, hop=100, mfcc=5, contrast_bands=3, log_mel=16)
CASES = {
    "default": DEFAULT,
    "mfcc alone": Settings(contrast_bands=0, mfcc=13),
    "contrast alone": Settings(mfcc=0),
    "log-mel alone": Settings(mfcc=0, contrast_bands=0, log_mel=64),
    "all, 128 mel": Settings(log_mel=128),
    "all, 40 mel": Settings(log_mel=40, mfcc=128),
    "44.1 kHz, long frames": Settings(sample_rate_hz=44100, n_fft=8192, hop=1000),  # 29 bins make its last peak
    "13 kHz, narrow last band": Settings(sample_rate_hz=13000),
    "hop beyond the frame": Settings(n_fft=512, hop=700),
    "frame of no power of two": Settings(sample_rate_hz=11025, n_fft=1650, hop=330, contrast_bands=4),
    "edges on bins": Settings(n_fft=1600, hop=400),  # bins lie 10 Hz apart
    "small": SMALL,
}


def reference(samples: Array, s: Settings) -> Array:
    """librosa's features of a clip, (T, D)."""
    spectrum = {"y": samples, "sr": s.sample_rate_hz, "n_fft": s.n_fft, "hop_length": s.hop}
    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of clips shorter than a frame, and of mel bands between two bins
        if s.mfcc:
            parts.append(librosa.feature.mfcc(**spectrum, n_mfcc=s.mfcc))
        if s.contrast_bands:
            parts.append(librosa.feature.spectral_contrast(**spectrum, n_bands=s.contrast_bands))
        if s.log_mel:
            parts.append(librosa.power_to_db(librosa.feature.melspectrogram(**spectrum, n_mels=s.log_mel)))
    return np.concatenate(parts).T


def noise(num_samples: int, seed: int = 0) -> Array:
    return 0.1 * np.random.default_rng(seed).standard_normal(num_samples, np.float32)


def tones(sample_rate_hz: int, num_samples: int) -> Array:
    t = np.arange(num_samples) / sample_rate_hz
    return np.asarray(0.3 * np.sin(2 * np.pi * 440 * t) + 1e-3 * np.sin(2 * np.pi * 1517.3 * t), np.float32)


def music(sample_rate_hz: int, num_samples: int) -> Array:
    """Harmonics of a gliding tone, beats of noise, and a silent pause."""
    t = np.arange(num_samples) / sample_rate_hz
    cycles = 110 * (t + 0.3 * t**2)
    sound = sum(0.2 * np.sin(2 * np.pi * k * cycles) / k for k in range(1, 12))
    sound += noise(num_samples) * np.exp(-20 * (t % 0.25))
    sound[num_samples // 3 : num_samples // 2] = 0
    return np.asarray(sound, np.float32)


def check(actual: Array, expected: Array) -> None:
    """Within 2e-4 dB (or units of an MFCC), where values go up to hundreds."""
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("sound", ["noise", "tones", "music", "impulse", "constant", "faint"])
def test_agrees_with_librosa(case: Settings, sound: str) -> None:
    rate, num_samples = case.sample_rate_hz, 37 * case.hop + 7
    impulse = np.zeros(num_samples, np.float32)
    impulse[num_samples // 2] = 1
    samples = {
        "noise": noise(num_samples),
        "tones": tones(rate, num_samples),
        "music": music(rate, num_samples),
        "impulse": impulse,
        "constant": np.full(num_samples, 0.5, np.float32),
        "faint": noise(num_samples) * np.float32(1e-6),
    }[sound]
    actual = Extractor(case)(samples)
    assert actual.shape == (case.num_frames(num_samples), case.size)
    check(actual, reference(samples, case))


@pytest.mark.parametrize("name", ["angry", "happy", "sad"])
def test_agrees_with_librosa_on_real_music(real_data: Path, name: str) -> None:
    """MP3s, whose top octave is all but empty: its valleys are what float32 would not find."""
    path = min((real_data / "emotify" / name).glob("*.mp3"))
    samples = audio.read(path, 16000)[: 12 * 16000]
    check(Extractor(DEFAULT)(samples), reference(samples, DEFAULT))


@pytest.mark.parametrize("num_samples", [1, 2, 100, 511, 512, 1023, 1024, 1025, 2047, 2048, 2049, 8191, 8192])
def test_agrees_with_librosa_on_short_clips(num_samples: int) -> None:
    samples = noise(num_samples)
    check(Extractor(DEFAULT)(samples), reference(samples, DEFAULT))


@settings(deadline=None)
@given(st.integers(1, 5000), st.sampled_from([SMALL, SMALL.model_copy(update={"hop": 300}), CASES["mfcc alone"]]))
def test_agrees_with_librosa_at_any_length(num_samples: int, case: Settings) -> None:
    samples = noise(num_samples)
    actual = Extractor(case)(samples)
    assert actual.shape == (case.num_frames(num_samples), case.size)
    check(actual, reference(samples, case))


def test_sizes() -> None:
    assert DEFAULT.size == 27
    assert DEFAULT.hop_s == 0.032
    assert DEFAULT.num_frames(30 * 16000) == 938
    assert Settings(mfcc=0, contrast_bands=0, log_mel=64).size == 64
    assert Settings(mfcc=13, contrast_bands=4, log_mel=3).size == 13 + 5 + 3


def test_silence() -> None:
    """Every mel band is at the floor of -100 dB, of which the DCT leaves coefficient 0; there is no contrast."""
    features = Extractor(Settings(log_mel=8))(np.zeros(5000, np.float32))
    assert features[:, 0] == pytest.approx(-100 * np.sqrt(128), rel=1e-6)
    np.testing.assert_allclose(features[:, 1:27], 0, atol=1e-4)
    np.testing.assert_allclose(features[:, 27:], -100, rtol=1e-6)


def test_a_tone_on_a_flat_floor() -> None:
    """An impulse of 1 in the middle of frame 3 is a spectrum of 1. The tone, on bin 64, adds 0.3 * 2048 / 4 there."""
    samples = np.asarray(0.3 * np.sin(2 * np.pi * 500 * np.arange(6 * 2048) / 16000), np.float32)
    samples[3 * 2048] += 1
    features = Extractor(Settings(hop=2048, mfcc=0, log_mel=40))(samples)[3]
    expected = np.zeros(7)
    expected[2] = 10 * np.log10(np.hypot(1, 0.3 * 2048 / 4))  # from 400 to 800 Hz; the rest is flat
    np.testing.assert_allclose(features[:7], expected, atol=1e-4)
    # Triangles of area 1 sum a flat spectrum up to 1 per bin's width, the wider the more exactly.
    np.testing.assert_allclose(features[7 + 25 :], 10 * np.log10(2048 / 16000), atol=0.01)
    corners_hz = librosa.mel_frequencies(42, fmin=0, fmax=8000)
    assert features[7:].argmax() == np.argmin(np.abs(corners_hz[1:-1] - 500))


@given(st.floats(-30, 30), st.integers(0, 5))
def test_gain_moves_only_the_first_coefficient(gain_db: float, seed: int) -> None:
    case = Settings(sample_rate_hz=4000, n_fft=512, hop=100, mfcc=5, contrast_bands=3)
    samples = noise(4000, seed)
    before, after = Extractor(case)(samples), Extractor(case)(samples * np.float32(10 ** (gain_db / 20)))
    # Mel bands between two bins stay at the floor, which lies 80 dB below the loudest either way.
    np.testing.assert_allclose(after[:, 0] - before[:, 0], gain_db * np.sqrt(128), atol=2e-3)
    np.testing.assert_allclose(after[:, 1:], before[:, 1:], atol=1e-3)


def test_where_a_frame_stands_among_others_changes_nothing() -> None:
    samples = music(16000, 40 * 512)
    before, feature = Extractor(DEFAULT)(samples), Extractor(DEFAULT)
    for shift in (1, 5, 16, 19):
        later = feature(np.concatenate([np.zeros(shift * 512, np.float32), samples]))
        np.testing.assert_allclose(later[shift:], before, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(feature(samples), before)


def test_any_float_type_and_layout() -> None:
    samples, feature = noise(4000).astype(np.float16), Extractor(SMALL)
    expected = feature(samples.astype(np.float32))
    np.testing.assert_array_equal(feature(samples), expected)
    np.testing.assert_array_equal(feature(samples.astype(np.float64)), expected)
    np.testing.assert_array_equal(feature(np.repeat(samples, 2)[::2]), expected)
    np.testing.assert_array_equal(feature(samples.tolist()), expected)


def test_input_stays_as_it_is() -> None:
    samples = noise(4000)
    Extractor(SMALL)(samples)
    np.testing.assert_array_equal(samples, noise(4000))


def test_threads_share_one_extractor() -> None:
    feature = Extractor(SMALL)
    sounds = [noise(3000 + 7 * seed, seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for together, alone in zip(pool.map(feature, sounds), map(Extractor(SMALL), sounds), strict=True):
            np.testing.assert_array_equal(together, alone)


def test_loud_sound_stays_finite() -> None:
    features = Extractor(Settings(n_fft=1 << 15, hop=1 << 13, log_mel=8))(np.full(40000, 1e12, np.float32))
    assert np.isfinite(features).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e30])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_refuses_samples_that_are_no_sound(bad: float, dtype: type) -> None:
    samples = noise(9000).astype(np.float64)
    samples[7777] = bad
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="sample 7777 is "):
        Extractor(DEFAULT)(samples.astype(dtype))


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((2, 1000), np.float32), r"shape \(2, 1000\)"),
        (np.zeros(1000, np.int16), "int16"),
        (np.zeros(1000, np.complex64), "complex64"),
        (np.zeros(0, np.float32), "no samples"),
    ],
)
def test_refuses_what_is_not_mono_sound(samples: NDArray[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Extractor(DEFAULT)(samples)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sample_rate_hz": 12800}, r"contrast_bands=6: .* begins at 6400 Hz.* take at most 5 bands"),
        ({"sample_rate_hz": 8000}, "take at most 5 bands"),
        ({"sample_rate_hz": 400}, "take at most 0 bands"),
        ({"n_fft": 64}, "n_fft=64: no bin is left for the contrast band from 0 to 200 Hz"),
        ({"sample_rate_hz": 48000, "n_fft": 128}, "no bin is left"),
        ({"mfcc": 0, "contrast_bands": 0}, "all 0"),
        ({"mfcc": 129}, "mfcc"),
        ({"n_fft": 2047}, "n_fft"),
        ({"n_fft": 0}, "n_fft"),
        ({"hop": 0}, "hop"),
        ({"log_mel": -1}, "log_mel"),
        ({"contrast_bands": 5000}, "contrast_bands"),
        ({"mel": 40}, "mel"),
    ],
)
def test_refuses_settings_that_make_no_feature(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Settings(**values)


@settings(deadline=None)
@given(
    rate=st.integers(300, 50000),
    half=st.integers(1, 600),
    hop=st.integers(1, 900),
    bands=st.integers(0, 8),
    log_mel=st.integers(0, 40),
)
def test_settings_are_refused_or_work(rate: int, half: int, hop: int, bands: int, log_mel: int) -> None:
    """What is refused, but for there being no feature, is what librosa can't do; no bin lies outside the transforms."""
    samples = noise(1000)
    values = {"sample_rate_hz": rate, "n_fft": 2 * half, "hop": hop, "contrast_bands": bands, "log_mel": log_mel}
    try:
        case = Settings(**values, mfcc=3)
    except ValidationError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                theirs = librosa.feature.spectral_contrast(
                    y=samples, sr=rate, n_fft=2 * half, hop_length=hop, n_bands=bands
                )
            except (librosa.ParameterError, IndexError):
                return
        assert np.isnan(theirs).any()
        return
    check(Extractor(case)(samples), reference(samples, case))
