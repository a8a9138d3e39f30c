"""Segments against a walk over seconds, and pieces of files against the files decoded as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mmray.features import audio, segments
from mmray.features.segments import Settings

RATE = 22_050
FORMATS = ("wav", "rf64", "w64", "aiff", "flac", "mp3", "ogg")


def sound(seconds: float, channels: int = 2, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Tones and noise, (n, channels), so that codecs have something to keep and every place differs."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    tones = np.sin(np.cumsum(rng.uniform(0.02, 0.3, n // 1000 + 1).repeat(1000)[:n]))
    return (0.4 * tones[:, None] + 0.02 * rng.standard_normal((n, channels))).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **how: Any) -> Path:
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], **how) as file:
        for start in range(0, len(samples), 4096):  # libsndfile's Vorbis encoder can't take much at once
            file.write(samples[start : start + 4096])
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    return {name: write(folder / f"a.{name}", sound(7.3)) for name in FORMATS}


# ---- Where segments lie


def walked(num_samples: int, size: int, hop: int) -> list[tuple[int, int]]:
    """All segments by their definition: while one fits whole; then one more, if any sample has been in none."""
    found, start = [], 0
    while start + size <= num_samples:
        found.append((start, start + size))
        start += hop
    covered = set().union(*(range(*s) for s in found))
    if any(sample not in covered for sample in range(start, num_samples)):
        found.append((start, num_samples))
    return found


@given(num_samples=st.integers(1, 300), size=st.integers(1, 90), hop=st.integers(1, 120))
@hypothesis_settings(deadline=None)
def test_segments_lie_where_their_definition_says(num_samples: int, size: int, hop: int) -> None:
    settings = Settings(segment_s=size / 100, hop_s=hop / 100)
    number = segments.num_segments(settings, 100, num_samples)
    found = [segments.span(settings, 100, num_samples, index) for index in range(number)]
    expected = walked(num_samples, size, hop)
    assert found == expected
    assert [segments.start_s(settings, 100, index) for index in range(number)] == [s / 100 for s, _ in expected]
    whole = [s for s in expected if s[1] - s[0] == size]
    dropping = settings.model_copy(update={"tail": "drop"})
    assert segments.num_segments(dropping, 100, num_samples) == len(whole)
    picky = settings.model_copy(update={"min_tail_s": 0.2})
    assert segments.num_segments(picky, 100, num_samples) == len(whole) + sum(
        20 <= stop - start < size for start, stop in expected
    )


@given(
    num_samples=st.integers(1, 10**10), from_hz=st.sampled_from([8000, 22050, 44100, 48000]), to=st.integers(1, 10**5)
)
def test_length_after_resampling_is_rounded_to_nearest(num_samples: int, from_hz: int, to: int) -> None:
    length = audio.Length(num_samples / from_hz, from_hz, 1, num_samples)
    found = segments.num_samples_at(length, to)
    assert -from_hz < 2 * (found * from_hz - num_samples * to) <= from_hz


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_length_is_that_of_the_sound_that_is_read(files: dict[str, Path], rate: int) -> None:
    for path in files.values():
        assert segments.num_samples_at(audio.length(path), rate) == len(audio.read(path, rate))


@pytest.mark.parametrize("key", ["segment_s", "hop_s"])
def test_lengths_below_a_millisecond_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=0.0001: give at least"):
        Settings(**{key: 0.0001})


# ---- Reading them


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("name", FORMATS)
def test_segments_are_pieces_of_the_whole_file(files: dict[str, Path], name: str, rate: int) -> None:
    whole = audio.read(files[name], rate)
    settings = Settings(segment_s=2, hop_s=0.7)
    number = segments.num_segments(settings, rate, len(whole))
    pieces = list(segments.read(files[name], settings, rate, len(whole), range(number)))
    for index, piece in enumerate(pieces):
        start, stop = segments.span(settings, rate, len(whole), index)
        assert piece.dtype == np.float32
        tolerance = 0 if rate == RATE and name != "mp3" else 1e-6
        np.testing.assert_allclose(piece, whole[start:stop], rtol=0, atol=tolerance)
    assert len(pieces[-1]) < 2 * rate
    # The same bits, whichever others are read and in which order.
    shuffled = np.random.default_rng(rate).permutation(number)[:5]
    for index, piece in zip(
        shuffled, segments.read(files[name], settings, rate, len(whole), shuffled.tolist()), strict=True
    ):
        assert np.array_equal(piece, pieces[index])


@pytest.mark.parametrize("mix", ["mean", "sum", "left", "right"])
def test_channels_are_mixed(files: dict[str, Path], mix: str) -> None:
    whole = audio.read(files["flac"], RATE, mix)
    (piece,) = segments.read(files["flac"], Settings(segment_s=1, hop_s=1), RATE, len(whole), [3], mix)
    assert np.array_equal(piece, whole[3 * RATE : 4 * RATE])


def test_tail_is_filled_up(files: dict[str, Path]) -> None:
    whole = audio.read(files["wav"], RATE)
    (piece,) = segments.read(files["wav"], Settings(segment_s=5, hop_s=5, tail="pad"), RATE, len(whole), [1])
    assert len(piece) == 5 * RATE
    rest = len(whole) - 5 * RATE
    assert np.array_equal(piece[:rest], whole[5 * RATE :])
    assert not piece[rest:].any()


def test_one_bad_segment_spares_the_others(tmp_path: Path) -> None:
    samples = sound(5, channels=1)
    samples[2 * RATE + 100] = np.nan
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    found = list(segments.read(path, Settings(segment_s=1, hop_s=1), RATE, 5 * RATE, range(5)))
    assert [isinstance(piece, ValueError) for piece in found] == [False, False, True, False, False]
    assert f"sample {2 * RATE + 100}" in str(found[2])
    assert np.array_equal(found[3], samples[3 * RATE : 4 * RATE, 0])


def test_damage_within_a_flac_spares_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sound(20))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    found = list(segments.read(path, Settings(segment_s=2, hop_s=2), RATE, 20 * RATE, range(10)))
    bad = [index for index, piece in enumerate(found) if isinstance(piece, ValueError)]
    whole = sound(20).mean(axis=1)
    assert bad
    assert set(bad) <= {3, 4, 5, 6}
    for index in set(range(10)) - {*bad}:
        np.testing.assert_allclose(found[index], whole[index * 2 * RATE :][: 2 * RATE], atol=1e-4)


def test_a_file_that_ends_too_early_is_named(files: dict[str, Path]) -> None:
    for name in FORMATS:
        n = len(audio.read(files[name], RATE))
        (piece,) = segments.read(files[name], Settings(segment_s=5, hop_s=5), RATE, n + RATE, [1])
        with pytest.raises(ValueError, match=rf"a\.{name}: truncated or damaged: it ends at 7.* not after 8\."):
            raise piece
        (piece,) = segments.read(files[name], Settings(segment_s=5, hop_s=5), RATE, 100 * RATE, [12])
        assert isinstance(piece, ValueError)


def test_flac_of_unknown_length_is_read_from_its_start(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", sound(6))
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples, as a writer to a pipe leaves them
    data[22:26] = bytes(4)
    path.write_bytes(data)
    whole = audio.read(path, RATE)
    assert len(whole) == 6 * RATE == audio.length(path).num_samples
    pieces = segments.read(path, Settings(segment_s=1, hop_s=1), RATE, len(whole), [4, 1, 5])
    for index, piece in zip([4, 1, 5], pieces, strict=True):
        assert np.array_equal(piece, whole[index * RATE : (index + 1) * RATE])


def test_wav_of_more_than_4_gb_is_read_at_its_end(tmp_path: Path) -> None:
    """An RF64 of nothing but zeros, which takes no room on disk, and a second of sound at its end."""
    path = tmp_path / "a.rf64"
    write(path, sound(1), subtype="PCM_16")
    header = bytearray(path.read_bytes())
    end_of_header = header.index(b"data") + 8
    tail = bytes(header[end_of_header:])
    zeros = (4_500_000_000 // 4) * 4
    num_frames = zeros // 4 + RATE
    at = header.index(b"ds64") + 8
    for place, value in ((at, zeros + len(header) - 8), (at + 8, zeros + len(tail)), (at + 16, num_frames)):
        header[place : place + 8] = value.to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(header[:end_of_header])
        file.seek(end_of_header + zeros)
        file.write(tail)
    if os.stat(path).st_blocks * 512 > 10**8:
        pytest.skip("this file system has no sparse files")
    assert audio.length(path).num_samples == num_frames
    piece = audio.read_span(path, RATE, num_frames - RATE, num_frames, "left")
    assert np.array_equal(audio.read_span(path, RATE, 10**9, 10**9 + 5), np.zeros(5))
    np.testing.assert_allclose(piece, sound(1)[:, 0], atol=1 / 32768)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 5), (6, 5)])
def test_span_must_be_one(files: dict[str, Path], start: int, stop: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= start < stop"):
        audio.read_span(files["wav"], RATE, start, stop)


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        *[("mp3", 8000, 1), ("mp3", 22050, 1), ("mp3", 44100, 2), ("mp3", 48000, 1)],
        *[("ogg", 22050, 2), ("ogg", 44100, 1), ("opus", 48000, 2), ("flac", 44100, 2)],
    ],
)
def test_lossy_files_are_sought_right(tmp_path: Path, name: str, rate: int, channels: int) -> None:
    """Also where libsndfile does not: at the end of Vorbis, and where MP3 frames of few bits borrow from others."""
    how = {"format": "OGG", "subtype": "OPUS"} if name == "opus" else {}
    path = write(tmp_path / f"a.{name}", sound(30, channels, rate), rate, **how)
    whole = audio.read(path, rate)
    rng = np.random.default_rng(rate)
    near_the_end = len(whole) - 1 - rng.integers(0, rate // 4, 20)
    for start in [*rng.integers(0, len(whole) - rate, 30), *near_the_end]:
        stop = min(int(start) + rate // 2, len(whole))
        piece = audio.read_span(path, rate, int(start), stop)
        np.testing.assert_allclose(piece, whole[start:stop], rtol=0, atol=1e-6)


@given(seed=st.integers(0, 99), from_hz=st.sampled_from([8000, 11025, 44100, 44101, 96000]), data=st.data())
@hypothesis_settings(max_examples=25, deadline=None)
def test_any_span_at_any_rate(
    tmp_path_factory: pytest.TempPathFactory, seed: int, from_hz: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("span") / "a.wav"
    write(path, sound(1.5, channels=1, rate=from_hz, seed=seed), from_hz, subtype="FLOAT")
    rate = data.draw(st.sampled_from([8000, 16000, 22050]))
    whole = audio.read(path, rate)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    np.testing.assert_allclose(audio.read_span(path, rate, start, stop), whole[start:stop], rtol=0, atol=1e-6)


# ---- How long an MP3 is


def decoded(path: Path) -> int:
    """The samples that libsndfile decodes when asked until there are no more."""
    with soundfile.SoundFile(path) as file:
        file.seekable = lambda: False  # soundfile would stop where the length is estimated to be
        return sum(iter(lambda: len(file.read(65536)), 0))


def without_count(mp3: bytes) -> bytes:
    """The MP3 without the first frame, which tells how many follow."""
    second = mp3.index(mp3[:2], 4)
    return mp3[second:]


ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x04\x00\x00\x00\x00\x02\x05" + bytes(2 * 128 + 5)
APE = b"APETAGEX" + (2000).to_bytes(4, "little") + (40).to_bytes(4, "little") + bytes(16 + 40)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "as written": lambda mp3: mp3,
    "no count": without_count,
    "tags": lambda mp3: ID3V2 + without_count(mp3) + ID3V1,
    "APE tag": lambda mp3: without_count(mp3) + APE + ID3V1,
    "count and tags": lambda mp3: ID3V2 + mp3 + ID3V1,
    "cut": lambda mp3: without_count(mp3)[:-40],
    "twice": lambda mp3: without_count(mp3) * 2,
    "tag within": lambda mp3: without_count(mp3) + ID3V2 + without_count(mp3),
    "zeros within": lambda mp3: without_count(mp3)[:2000] + bytes(500) + without_count(mp3)[2000:],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rate", [8000, 22050, 32000, 44100])
def test_length_of_an_mp3_is_what_is_decoded(tmp_path: Path, rate: int, change: str) -> None:
    path = write(tmp_path / "a.mp3", sound(3, rate=rate), rate, bitrate_mode="CONSTANT", compression_level=0.5)
    path.write_bytes(CHANGES[change](path.read_bytes()))
    assert audio.length(path).num_samples == decoded(path) == len(audio.read(path, rate))


def test_an_mp3_that_would_be_read_in_part_is_refused(tmp_path: Path) -> None:
    """libsndfile takes the first frame's bit rate for that of all and stops where the file would then end."""
    quiet_later = np.concatenate([sound(2), np.zeros((60 * RATE, 2), np.float32)])
    path = write(tmp_path / "a.mp3", quiet_later, bitrate_mode="VARIABLE")
    assert audio.length(path).num_samples == len(quiet_later)
    path.write_bytes(without_count(path.read_bytes()))
    assert decoded(path) < 0.9 * len(quiet_later)
    for reading in (audio.length, lambda path: audio.read(path, RATE)):
        with pytest.raises(ValueError, match=r"a\.mp3: an MP3 of varying bit rate that does not tell its length"):
            reading(path)


def test_length_of_an_mp3_that_lacks_its_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp3", sound(5))
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(ValueError, match=r"a\.mp3: truncated or damaged"):
        audio.length(path)


def test_lengths_and_segments_of_real_mp3s(real_data: Path) -> None:
    paths = sorted((real_data / "emotify").glob("*/*.mp3"))[::10]
    assert paths
    for path in paths:
        whole = audio.read(path, 16000)
        assert segments.num_samples_at(audio.length(path), 16000) == len(whole)
        (piece,) = segments.read(path, Settings(), 16000, len(whole), [1])
        np.testing.assert_allclose(piece, whole[480_000:960_000], rtol=0, atol=1e-6)
