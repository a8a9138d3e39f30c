"""Sound files against the standard library's WAV writer, soxr in one go, sines in closed form; damage of all kinds."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.features import audio

RATE = 44_100


def noise(num_samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Correlated in time, so that codecs have something to keep; (n, channels), within ±1."""
    rng = np.random.default_rng(seed)
    tones = np.sin(np.arange(num_samples)[:, None] * rng.uniform(0.01, 0.2, channels))
    return (0.5 * tones + 0.01 * rng.standard_normal((num_samples, channels))).astype(np.float32)


def write_pcm16(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """By the standard library. Samples int16 (n, channels)."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, samples: np.ndarray, rate: int = RATE, **how: str) -> Path:
        soundfile.write(tmp_path / name, samples, rate, **how)
        return tmp_path / name

    return write


# ---- What comes out


@given(seed=st.integers(0, 99), channels=st.integers(1, 6), num_samples=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_without_resampling_every_bit_is_the_files(tmp_path_factory, seed, channels, num_samples) -> None:
    samples = np.random.default_rng(seed).integers(-(2**15), 2**15, (num_samples, channels), np.int16)
    path = write_pcm16(tmp_path_factory.mktemp("wav") / "a.wav", samples)
    exact = samples.astype(np.float64) / 2**15
    assert np.array_equal(audio.read_channels(path, RATE), exact.T)
    assert np.array_equal(audio.read(path, RATE, "sum"), exact.sum(axis=1))  # 16 bits add up exactly in float32
    np.testing.assert_allclose(audio.read(path, RATE), exact.mean(axis=1), rtol=1e-6)
    if channels > 1:
        assert np.array_equal(audio.read(path, RATE, "left"), exact[:, 0])
        assert np.array_equal(audio.read(path, RATE, "right"), exact[:, 1])
    assert audio.length(path) == audio.Length(num_samples / RATE, RATE, channels, num_samples)


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_24", 23), ("PCM_16", 15), ("PCM_S8", 7)])
def test_integers_are_scaled_exactly(written: Callable[..., Path], subtype: str, bits: int) -> None:
    whole = np.random.default_rng(1).integers(-(2**bits), 2**bits, 1000)
    path = written("a.aiff", whole / 2.0**bits, subtype=subtype)
    assert np.array_equal(audio.read(path, RATE), whole / 2.0**bits)


def test_floats_beyond_full_scale_are_kept(written: Callable[..., Path]) -> None:
    path = written("a.wav", np.array([[3.5, -2.0], [1.0, 1.0]]), subtype="FLOAT")
    assert audio.read(path, RATE, "sum").tolist() == [1.5, 2.0]
    assert audio.read(path, RATE, "left").tolist() == [3.5, 1.0]


@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.w64", "a.flac", "a.aiff", "a.au", "a.caf"])
def test_every_lossless_format_holds_the_same(written: Callable[..., Path], name: str) -> None:
    whole = np.random.default_rng(2).integers(-(2**15), 2**15, (200_000, 2), np.int16)  # several blocks
    path = written(name, whole, subtype="PCM_16")
    assert path.suffix in audio.SUFFIXES
    assert np.array_equal(audio.read_channels(path, RATE), whole.T / np.float32(2**15))
    assert audio.length(path).num_samples == 200_000


@pytest.mark.parametrize(
    ("name", "how", "rate"),
    [
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}, 44_100),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 48_000),
        ("a.mp3", {"format": "MP3"}, 44_100),
    ],
)
def test_lossy_formats_sound_the_same(written: Callable[..., Path], name: str, how: dict[str, str], rate: int) -> None:
    t = np.arange(3 * rate) / rate
    sines = 0.5 * np.sin(2 * np.pi * np.array([440, 660]) * t[:, None])
    path = written(name, sines, rate, **how)
    assert audio.length(path) == audio.Length(3.0, rate, 2, 3 * rate)
    error = audio.read_channels(path, rate)[:, 2000:-2000].T - sines[2000:-2000]
    assert np.sqrt(np.mean(error**2)) < 0.01  # and so neither delayed nor cut at the start


def test_the_name_does_not_matter(tmp_path: Path, written: Callable[..., Path]) -> None:
    samples = noise(5000)
    expected = audio.read(written("a.flac", samples), 16_000)
    for name in ("flac.wav", "flac.mp3", "flac.raw", "flac", "Ünïcode name.txt"):
        (tmp_path / name).write_bytes((tmp_path / "a.flac").read_bytes())
        assert np.array_equal(audio.read(tmp_path / name, 16_000), expected)
        assert np.array_equal(audio.read(str(tmp_path / name), 16_000), expected)


# ---- Resampling


@given(
    num_samples=st.integers(1, 5000),
    rates=st.sampled_from([(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (22_050, 44_100), (11_025, 16_000)]),
)
@settings(max_examples=40, deadline=None)
def test_length_after_resampling(tmp_path_factory, num_samples: int, rates: tuple[int, int]) -> None:
    before, after = rates
    path = write_pcm16(tmp_path_factory.mktemp("wav") / "a.wav", np.zeros((num_samples, 1), np.int16), before)
    expected = (2 * num_samples * after + before) // (2 * before)  # floor(n · to / from + 1/2)
    if expected == 0:
        with pytest.raises(ValueError, match="too short"):
            audio.read(path, after)
    else:
        assert audio.read(path, after).shape == (expected,)


@pytest.mark.parametrize("rates", [(44_100, 16_000), (48_000, 16_000), (8_000, 44_100), (44_100, 22_050)])
def test_the_same_as_soxr_in_one_go(written: Callable[..., Path], rates: tuple[int, int]) -> None:
    samples = noise(400_001, 2)
    path = written("a.wav", samples, rates[0], subtype="FLOAT")
    assert np.array_equal(audio.read_channels(path, rates[1]), soxr.resample(samples, *rates, quality="HQ").T)
    mean = (samples[:, 0] + samples[:, 1]) / 2
    assert np.array_equal(audio.read(path, rates[1]), soxr.resample(mean, *rates, quality="HQ"))


@pytest.mark.parametrize("rate", [44_100, 48_000, 8_000])
def test_a_resampled_sine_is_that_sine(written: Callable[..., Path], rate: int) -> None:
    path = written("a.wav", 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate), rate, subtype="FLOAT")
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(32_000) / 16_000)
    np.testing.assert_allclose(audio.read(path, 16_000)[1000:-1000], expected[1000:-1000], atol=1e-5)


def test_blocks_are_bounded_and_their_sum_is_the_file(written: Callable[..., Path]) -> None:
    for samples, rate in ((noise(500_000, 2), 44_100), (noise(200_000, 1), 1_000), (noise(20_000, 40), 44_100)):
        path = written("a.wav", samples, rate, subtype="FLOAT")
        for target in (rate, 16_000):
            parts = list(audio.blocks(path, target))
            assert all(0 < len(part) < 1.1 * 131_072 and part.dtype == np.float32 for part in parts)
            assert len(parts) > 1
            assert np.array_equal(np.concatenate(parts), audio.read(path, target))


def test_blocks_stay_as_they_were_given(written: Callable[..., Path]) -> None:
    """No buffer is used twice."""
    path = written("a.wav", noise(300_000, 1), subtype="FLOAT")
    kept, copies = [], []
    for block in audio.blocks(path, RATE):
        kept.append(block)
        copies.append(block.copy())
    assert len(kept) > 1
    assert all(np.array_equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_a_file_over_4_gb(tmp_path: Path) -> None:
    """Sparse, and only its start is read."""
    num_bytes = 5 << 30
    size = struct.pack("<Q", 0)
    head = (
        b"RF64\xff\xff\xff\xffWAVE" + b"ds64" + struct.pack("<IQQQI", 28, num_bytes + 72, num_bytes, num_bytes // 4, 0)
    )
    head += b"fmt " + struct.pack("<IHHIIHH", 16, 1, 2, RATE, 4 * RATE, 4, 16) + b"data\xff\xff\xff\xff"
    with (tmp_path / "a.rf64").open("wb") as file:
        file.write(head + struct.pack("<hh", 16384, 8192) + size)
        file.truncate(len(head) + num_bytes)
    assert audio.length(tmp_path / "a.rf64").num_samples == num_bytes // 4
    first = next(audio.blocks(tmp_path / "a.rf64", RATE))
    assert first[:2].tolist() == [0.375, 0.0]


def test_silence_is_fine(written: Callable[..., Path]) -> None:
    assert not audio.read(written("a.flac", np.zeros((RATE, 2))), 16_000).any()


# ---- What can't be used


def test_mono_has_no_sides(written: Callable[..., Path]) -> None:
    path = written("mono.wav", noise(100, 1))
    for mix in ("left", "right"):
        with pytest.raises(ValueError, match=r"mono\.wav: mix='(left|right)' needs two channels"):
            audio.read(path, RATE, mix)
    with pytest.raises(ValueError, match="choose mean, sum, left or right"):
        audio.read(path, RATE, "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sample_rate_hz=0"):
        audio.read(path, 0)


def test_what_is_no_sound_file(tmp_path: Path) -> None:
    for name, content in (
        ("empty.wav", b""),
        ("text.wav", b"0.01 440.0\n" * 500),
        ("text.mp3", b"0.01 440.0\n" * 500),
        ("picture.flac", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9),
        ("half a header.wav", b"RIFF\x00\x10\x00\x00WAVEfmt "),
        ("aac.m4a", b"\x00\x00\x00\x20ftypM4A \x00\x00\x00\x00M4A mp42isom" + bytes(2000)),
    ):
        (tmp_path / name).write_bytes(content)
        for use in (audio.length, lambda path: audio.read(path, 16_000)):
            with pytest.raises(ValueError, match=rf"{name}: not a sound file .*convert"):
                use(tmp_path / name)
    with pytest.raises(ValueError, match=r"absent\.wav can't be read: No such file"):
        audio.length(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="can't be read: Is a directory"):
        audio.length(tmp_path)


def test_an_unknown_codec(tmp_path: Path, written: Callable[..., Path]) -> None:
    content = bytearray(written("a.wav", noise(1000)).read_bytes())
    at = content.index(b"fmt ") + 8
    content[at : at + 2] = struct.pack("<H", 0x7A21)  # AMR
    (tmp_path / "amr.wav").write_bytes(content)
    with pytest.raises(ValueError, match=r"amr\.wav: not a sound file"):
        audio.read(tmp_path / "amr.wav", 16_000)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.w64"])
def test_no_samples(written: Callable[..., Path], name: str) -> None:
    path = written(name, noise(0))
    for use in (audio.length, lambda path: audio.read(path, 16_000)):
        with pytest.raises(ValueError, match="holds no samples"):
            use(path)


@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.w64", "a.flac", "a.aiff", "a.au", "a.caf", "a.mp3"])
def test_a_truncated_file_is_never_read_as_a_short_one(written: Callable[..., Path], name: str) -> None:
    path = written(name, noise(4 * RATE))
    content = path.read_bytes()
    for kept in (0.9, 0.5, 0.1):
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(ValueError, match=r"a\..*(truncated|damaged|malformed)"):
            audio.read(path, 16_000)


@pytest.mark.parametrize("name", ["a.wav", "a.rf64", "a.w64", "a.aiff", "a.au", "a.caf", "a.mp3"])
def test_length_refuses_a_truncated_file(written: Callable[..., Path], name: str) -> None:
    path = written(name, noise(4 * RATE))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"truncated or damaged: (1\.9\d|2\.00) s of the 4\.00 s|malformed"):
        audio.length(path)


@pytest.mark.parametrize(
    ("name", "how", "rate"),
    [
        ("a.flac", {}, 44_100),
        ("a.mp3", {}, 44_100),
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}, 44_100),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 48_000),
    ],
)
def test_a_hole_is_noticed(written: Callable[..., Path], name: str, how: dict[str, str], rate: int) -> None:
    path = written(name, noise(8 * rate), rate, **how)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8000] = np.random.default_rng(3).integers(0, 256, 8000, np.uint8).tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"truncated or damaged|damaged after"):
        audio.read(path, 16_000)


def test_what_follows_the_sound_is_no_damage(written: Callable[..., Path]) -> None:
    for name in ("a.wav", "a.flac", "a.mp3", "a.aiff"):
        path = written(name, noise(RATE))
        before = audio.read(path, 16_000)
        with path.open("ab") as file:
            file.write(b"TAG" + bytes(125))  # ID3v1
        assert np.array_equal(audio.read(path, 16_000), before)
        assert audio.length(path).num_samples == RATE


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_wav_written_to_a_pipe(written: Callable[..., Path], size: int) -> None:
    """Its header can't know the size, and holds a large one."""
    path = written("a.wav", noise(RATE))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(content)
    assert audio.length(path).num_samples == len(audio.read(path, RATE)) == RATE


def test_flac_written_to_a_pipe(written: Callable[..., Path]) -> None:
    """Its header says 0 samples: unknown."""
    path = written("a.flac", noise(150_001))
    expected = audio.read(path, RATE)
    content = bytearray(path.read_bytes())
    bits = int.from_bytes(content[18:26], "big")
    assert bits & (1 << 36) - 1 == 150_001
    content[18:26] = (bits >> 36 << 36).to_bytes(8, "big")
    path.write_bytes(content)
    assert np.array_equal(audio.read(path, RATE), expected)
    assert audio.length(path) == audio.Length(150_001 / RATE, RATE, 2, 150_001)


def test_mp3_with_a_large_id3_tag(written: Callable[..., Path]) -> None:
    """A cover image in front: the header with the number of frames stands behind it."""
    path = written("a.mp3", noise(4 * RATE))
    content = path.read_bytes()
    size = 70_000
    tag = b"ID3\x03\x00\x00" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)
    path.write_bytes(tag + content)
    assert audio.length(path).num_samples == 4 * RATE
    path.write_bytes(tag + content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"truncated or damaged: 1\.9"):
        audio.read(path, 16_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(written: Callable[..., Path], value: float) -> None:
    samples = noise(200_000, 3)
    samples[150_000, 1] = samples[160_000, 0] = value
    path = written("a.wav", samples, subtype="FLOAT")
    with pytest.raises(ValueError, match=rf"a\.wav: sample 150000 \(3\.4014 s\) of channel 1 is {value}"):
        audio.read(path, 16_000)


def test_float64_beyond_float32(written: Callable[..., Path]) -> None:
    path = written("a.wav", np.array([0.5, 1e300]), subtype="DOUBLE")
    with pytest.raises(ValueError, match=r"sample 1 .* is inf"):
        audio.read(path, RATE)


@given(st.integers(0, 10**6), st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_damage_gives_samples_or_a_value_error(tmp_path_factory, seed: int, num_bytes: int) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("damage")
    name = ("a.wav", "a.flac", "a.mp3", "a.ogg", "a.aiff", "a.w64")[seed % 6]
    soundfile.write(folder / name, noise(3000, 2, seed=seed % 7), RATE)
    content = bytearray((folder / name).read_bytes())
    span = len(content) if seed % 2 else 200  # half of the time in the header
    for at in rng.integers(0, min(span, len(content)), num_bytes // (1 if seed % 2 else 40) + 1):
        content[at] = rng.integers(0, 256)
    (folder / name).write_bytes(content)
    num_samples, message = 1, name
    try:
        num_samples = sum(len(block) for block in audio.blocks(folder / name, 16_000))
    except ValueError as error:
        message = str(error)
    assert num_samples > 0
    assert name in message


# ---- Real files


def test_real_mp3s(real_data: Path) -> None:
    """Without a Xing header, their announced length is an estimate; both ways of counting agree all the same."""
    paths = sorted((real_data / "emotify").rglob("*.mp3"))[:3]
    assert paths
    for path in paths:
        found = audio.length(path)
        assert (found.sample_rate_hz, found.channels) == (44_100, 2)
        assert abs(found.seconds - 60) < 0.5
        assert audio.read(path, 44_100).shape == (found.num_samples,)
        assert len(audio.read(path, 16_000)) == (2 * found.num_samples * 16_000 + 44_100) // 88_200


def test_real_clips(real_data: Path) -> None:
    """MIR-1K: two channels that differ, and nothing to resample."""
    paths = sorted((real_data / "mir1k" / "Wavfile").iterdir())
    assert paths
    for path in paths:
        assert audio.length(path).sample_rate_hz == 16_000
    left, right = audio.read_channels(paths[0], 16_000)
    assert not np.array_equal(left, right)
    assert np.array_equal(audio.read(paths[0], 16_000), (left + right) / 2)
    assert np.array_equal(audio.read(paths[0], 16_000, "right"), right)
