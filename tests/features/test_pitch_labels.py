"""Pitch labels against mir_eval's reader, numbers by hand, real files, and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path

import mir_eval
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.features.pitch_labels import (
    PitchTrack,
    check_covers,
    hz_to_midi,
    midi_to_hz,
    read_ikala,
    read_mir1k,
    read_times_and_hz,
)


@pytest.fixture
def file(tmp_path: Path):
    def write(content: str | bytes) -> Path:
        path = tmp_path / "labels.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def pairs(track: PitchTrack) -> list[tuple[float, float]]:
    return list(zip(track.times_s.tolist(), track.f0_hz.tolist(), strict=True))


def test_midi_and_hz() -> None:
    assert midi_to_hz([69, 57, 81]).tolist() == [440, 220, 880]
    assert midi_to_hz(60) == pytest.approx(261.6255653)
    assert hz_to_midi([440, 880]).tolist() == [69, 81]
    for midi in np.linspace(1, 130, 50):
        assert hz_to_midi(midi_to_hz(midi)) == pytest.approx(midi, abs=1e-10)
        assert midi_to_hz(midi) == pytest.approx(mir_eval.util.midi_to_hz(midi), rel=1e-12)
    with pytest.raises(ValueError, match=r"0\.0, which has no pitch"):
        hz_to_midi([440, 0])


# ---- One MIDI pitch a line


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n  \n", ""])
def test_midi_files(file, end: str) -> None:
    newline = "\r\n" if end == "\r\n" else "\n"
    path = file(newline.join(["0", " 69", "57.000 ", "-1", "1e1"]) + end)
    mir1k, ikala = read_mir1k(path), read_ikala(path)
    expected = [0, 440, 220, 0, 440 * 2 ** (-59 / 12)]
    np.testing.assert_allclose(mir1k.f0_hz, expected, rtol=1e-14)
    np.testing.assert_allclose(ikala.f0_hz, expected, rtol=1e-14)
    np.testing.assert_allclose(mir1k.times_s, [0.01, 0.03, 0.05, 0.07, 0.09], rtol=1e-14)
    np.testing.assert_allclose(read_mir1k(path, first_s=0.02).times_s, [0.02, 0.04, 0.06, 0.08, 0.1], rtol=1e-14)
    np.testing.assert_allclose(ikala.times_s, [0.016, 0.048, 0.080, 0.112, 0.144], rtol=1e-14)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no labels"),
        ("\n\n", "no labels"),
        ("0\nsung\n", "line 2: 'sung' is not a number"),
        ("0\n60 61\n", "line 2: '60 61' is not a number"),
        ("60,5\n", "line 1: '60,5' is not a number"),
        ("60\n\n61\n", "line 2: blank; write 0"),
        ("60\nnan\n", "line 2: pitch nan; write 0"),
        ("60\n0\ninf\n", "line 3: pitch inf"),
        ("60\n440\n", r"line 2: pitch 440\.0 is above 20 kHz; check the unit"),
        ("60\n1e300\n", r"line 2: pitch 1e\+300 is above"),
        ("136\n", "line 1: pitch 136"),
    ],
)
def test_bad_midi_files(file, content: str, reason: str) -> None:
    for reader in (read_mir1k, read_ikala):
        with pytest.raises(ValueError, match=rf"labels\.txt.*{reason}"):
            reader(file(content))


# ---- Times and frequencies


@pytest.mark.parametrize(
    "content",
    [
        "0 0\n0.5 440\n1 220.5\n",
        "0\t0\n0.5\t440\n1\t220.5",
        "0,0\n0.5,440\n1,220.5\n",
        "0;0\n0.5;440\n1;220.5\n",
        "  0.0000000e+00   0.0\n  5e-1\t 4.4e2\n 1 220.5  \n",
        "0, 0\r\n0.5 , 440\r\n1,\t220.5\r\n",
        "0 ; 0\n0.5;\t440\n1;220.5;\n",
        "\ufefftime,frequency\n0,0\n0.5,440\n1,220.5\n",
        "time f0\n0 0\n0.5 440\n1 220.5\n",
        "# sung by a\n% and b\n\nTime (s);Pitch (Hz);Confidence\n0;0;1\n0.5;440;0.5\n\n1;220.5;0\n",
        "0 -440 # unvoiced\n0.5 440 % voiced\n#0.7 1\n1 220.5\n",
        "0,0,la\n0.5,440,\n1,220.5,0.2\n".replace(",\n", ",x\n"),
    ],
)
def test_ways_to_write_the_same(file, content: str) -> None:
    assert pairs(read_times_and_hz(file(content))) == [(0, 0), (0.5, 440), (1, 220.5)]


def test_a_comment_in_another_encoding(file) -> None:
    assert pairs(read_times_and_hz(file(b"# chant\xe9 \xff\n0 100\n"))) == [(0, 100)]


@given(
    steps=st.lists(st.floats(1e-4, 10), min_size=1, max_size=30),
    values=st.lists(st.one_of(st.just(0.0), st.floats(-2000, 2000)), min_size=30, max_size=30),
    separator=st.sampled_from([" ", "\t", ",", ", "]),
)
@settings(max_examples=100, deadline=None)
def test_the_same_as_mir_eval(tmp_path_factory, steps: list[float], values: list[float], separator: str) -> None:
    times = np.cumsum(steps)
    path = tmp_path_factory.mktemp("labels") / "a.txt"
    path.write_text("".join(f"{t!r}{separator}{f!r}\n" for t, f in zip(times.tolist(), values, strict=False)))
    track = read_times_and_hz(path)
    expected_times, frequencies = mir_eval.io.load_time_series(str(path), delimiter=r"\s*,\s*|\s+")
    f0_hz, voiced = mir_eval.melody.freq_to_voicing(frequencies)
    assert np.array_equal(track.times_s, expected_times)
    assert np.array_equal(track.f0_hz, f0_hz * voiced)
    assert not np.signbit(track.f0_hz).any()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no labels"),
        ("# nothing\n", "no labels"),
        ("time,f0\n", "no labels"),
        ("0\n1\n", "line 1: 1 columns in '0'; expected 2"),
        ("0 1 2 3\n", "line 1: 4 columns"),
        ("0 100\n\n1\n", "line 3: 1 columns in '1'; expected 2 as before"),
        ("0 100\n1 100 0.5\n", "line 2: 3 columns"),
        ("time f0\nHz s\n0 100\n", "line 2: 'Hz' is not a number"),
        ("0 100\ntime f0\n", "line 2: 'time' is not a number"),
        ("0,5 1O0\n1 100\n", "line 1: '5 1O0' is not a number"),
        ("0.x 1O0\n1 100\n", r"line 1: '0\.x' is not a number"),
        ("0 A4\n", "line 1: 'A4' is not a number"),
        ("0,01;440,5\n0,02;440,5\n", "line 1: '0,01' is not a number; .*decimal points"),
        ("0,01 440,5\n", "line 1: '01 440' is not a number|line 1: 3 columns"),
        ("0,01\t440\n", r"line 1: '01\\t440' is not a number"),
        ("0,01,440\n0,02,440\n", r"line 2: time 0\.0 s stands there twice"),
        ("0 100\n0.1 100\n0.1 100\n", r"line 3: time 0\.1 s stands there twice"),
        ("0 100\n0.2 100\n# a\n0.1 100\n", r"line 4: time 0\.1 s after 0\.2 s; sort"),
        ("-0.1 100\n0 100\n", r"line 1: time -0\.1 s; times count"),
        ("nan 100\n", "line 1: time nan"),
        ("0 100\ninf 100\n", "line 2: time inf"),
        ("0 100\n1 nan\n", "line 2: pitch nan; write 0"),
        ("0 100\n1 20000.5\n", r"line 2: pitch 20000\.5 is above 20 kHz"),
        (b"RIFF\x00\x01\n\x02\x03\n", "line 2: .* is not a number|line 2: 1 columns"),
    ],
)
def test_bad_files(file, content: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"labels\.txt.*({reason})"):
        read_times_and_hz(file(content))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for reader in (read_mir1k, read_ikala, read_times_and_hz):
        with pytest.raises(ValueError, match=r"absent\.txt can't be read: No such file"):
            reader(tmp_path / "absent.txt")
        with pytest.raises(ValueError, match="can't be read: Is a directory"):
            reader(tmp_path)


# ---- Labels and sound


def test_labels_that_cover_the_sound() -> None:
    def track(first_s: float, last_s: float) -> PitchTrack:
        return PitchTrack(np.array([first_s, last_s]), np.zeros(2))

    check_covers(track(0.01, 9.97), 10, "a.pv")
    check_covers(track(0, 10.09), 10, "a.pv")
    check_covers(track(0.9, 9.1), 10, "a.pv")
    check_covers(track(0, 14), 10, "a.pv", max_overrun_s=5)
    check_covers(track(4, 6), 10, "a.pv", max_gap_s=5)
    for first_s, last_s, figures in (
        (
            0.01,
            10.11,
            r"from 0\.010 to 10\.110 s, but the sound lasts 10\.000 s: 0\.110 s beyond its end, where 0\.1 s",
        ),
        (0.0, 8.5, r"lasts 10\.000 s: 1\.500 s of it without labels, where 1\.0 s"),
        (2.0, 9.9, r"2\.000 s of it without labels"),
    ):
        with pytest.raises(ValueError, match=rf"a\.pv: the labels reach .*{figures}.*belong together"):
            check_covers(track(first_s, last_s), 10, "a.pv")


def test_real_mir1k(real_data: Path) -> None:
    """Every clip: all labels, sung in a human range, to 30 to 50 ms before the end of the sound."""
    paths = sorted((real_data / "mir1k" / "PitchLabel").glob("*.pv"))
    assert paths
    for path in paths:
        track = read_mir1k(path)
        assert len(track.times_s) == len(np.loadtxt(path))
        assert np.array_equal(track.f0_hz > 0, np.loadtxt(path) > 0)
        voiced = track.f0_hz[track.f0_hz > 0]
        assert voiced.min() > 60
        assert voiced.max() < 700
        (sound,) = (real_data / "mir1k" / "Wavfile").glob(f"{path.stem}.*")
        duration_s = soundfile.info(sound).duration
        assert 0.029 < duration_s - track.times_s[-1] < 0.05
        check_covers(track, duration_s, path)


def test_real_text(real_data: Path) -> None:
    folder = real_data / "melody_weights"
    track = read_times_and_hz(folder / "train01_segnet_output.txt")
    expected = np.loadtxt(folder / "train01_segnet_output.txt")
    assert np.array_equal(np.stack([track.times_s, track.f0_hz], axis=1), expected)
    check_covers(track, soundfile.info(folder / "train01.wav").duration, folder / "train01.wav")
