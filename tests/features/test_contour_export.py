"""Contours as tables, notes and sound: read back by other programs' readers, and measured from the samples."""

from __future__ import annotations

import itertools
from pathlib import Path

import mido
import mir_eval
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.features import pitch_labels
from mmray.features.contour_export import Note, notes, sonified, write_csv, write_midi, write_sonification

HOP_S = 0.016


def grid(num_frames: int) -> np.ndarray:
    return HOP_S * np.arange(1, num_frames + 1)


def hz(midi: np.ndarray | float) -> np.ndarray:
    return 440 * 2 ** ((np.asarray(midi) - 69) / 12)


# ---- tables


def test_csv_is_read_by_mir_eval_and_by_our_own_reader(tmp_path: Path) -> None:
    times = 256 / 44100 * np.arange(1, 2001)
    f0 = np.where(np.arange(2000) % 7 < 2, 0.0, 200 + np.random.default_rng(0).uniform(0, 800, 2000))
    write_csv(tmp_path / "a.csv", times, f0)
    write_csv(tmp_path / "a.txt", times, f0)
    for read_times, read_f0 in (
        mir_eval.io.load_time_series(tmp_path / "a.csv", delimiter=","),
        mir_eval.io.load_time_series(tmp_path / "a.txt"),
        np.loadtxt(tmp_path / "a.txt").T,
    ):
        np.testing.assert_allclose(read_times, times, rtol=0, atol=5e-7)
        np.testing.assert_allclose(read_f0, f0, rtol=0, atol=5e-5)
        assert ((read_f0 == 0) == (f0 == 0)).all()
    for name in ("a.csv", "a.txt"):
        track = pitch_labels.read_times_and_hz(tmp_path / name)
        np.testing.assert_allclose(track.times_s, times, rtol=0, atol=5e-7)
        np.testing.assert_allclose(track.f0_hz, f0, rtol=0, atol=5e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.txt"]


def test_csv_to_the_letter(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [0.016, 0.032], [0.0, 440.00004], [0.25, 1.0])
    assert (tmp_path / "a.csv").read_bytes() == (
        b"# time_s,f0_hz,confidence\n0.016000,0.0000,0.2500\n0.032000,440.0000,1.0000\n"
    )
    columns = mir_eval.io.load_delimited(tmp_path / "a.csv", [float] * 3, delimiter=",")
    assert columns == ([0.016, 0.032], [0.0, 440.0], [0.25, 1.0])
    assert pitch_labels.read_times_and_hz(tmp_path / "a.csv").f0_hz.tolist() == [0.0, 440.0]
    write_csv(tmp_path / "a.txt", [0.016, 0.032], [0.0, 440.0])
    assert (tmp_path / "a.txt").read_bytes() == b"0.016000\t0.0000\n0.032000\t440.0000\n"


def test_csv_refuses_columns_that_do_not_fit(tmp_path: Path) -> None:
    for columns in (([0.0, 1.0], [1.0]), ([0.0], [np.nan]), ([0.0], [1.0], [1.0, 1.0]), ([[0.0]], [[1.0]])):
        with pytest.raises(ValueError, match=r"a\.csv: the columns have shapes"):
            write_csv(tmp_path / "a.csv", *columns)
    assert list(tmp_path.iterdir()) == []


# ---- notes


def found(midi: np.ndarray, voiced: np.ndarray | None = None, **options: float) -> list[tuple[float, float, float]]:
    f0 = hz(midi) if voiced is None else np.where(voiced, hz(midi), 0)
    return [(note.start_s, note.end_s, note.midi_pitch) for note in notes(grid(len(f0)), f0, **options)]


def assert_notes(result: list[tuple[float, float, float]], expected: list[tuple[float, float, float]]) -> None:
    """Times to a frame and a half, pitches to 20 cents."""
    assert len(result) == len(expected), result
    for one, other in zip(result, expected, strict=True):
        np.testing.assert_allclose(one[:2], other[:2], atol=0.024)
        assert one[2] == pytest.approx(other[2], abs=0.2)


T = grid(250)  # 4 s


@pytest.mark.parametrize("rate_hz", [4.5, 5, 5.5, 6, 6.5, 7])
@pytest.mark.parametrize("depth_cents", [20, 50, 80, 100])
def test_vibrato_is_one_note(rate_hz: float, depth_cents: float) -> None:
    vibrato = depth_cents / 100 * np.sin(2 * np.pi * rate_hz * T)
    assert_notes(found(60 + vibrato), [(0, 4, 60)])
    assert_notes(found(60 + 1.4 * vibrato), [(0, 4, 60)])
    melody = np.where(T < 1.5, 60, np.where(T < 2.5, 67, 65))
    assert_notes(found(melody + vibrato), [(0, 1.5, 60), (1.5, 2.5, 67), (2.5, 4, 65)])


def test_semitones_with_the_vibrato_of_a_voice_split() -> None:
    assert_notes(found(np.where(T < 2, 60, 61) + 0.6 * np.sin(2 * np.pi * 5.5 * T)), [(0, 2, 60), (2, 4, 61)])


def test_fast_runs_are_all_heard() -> None:
    assert_notes(found(60 + np.floor(T / 0.125)), [(0.125 * k, 0.125 * (k + 1), 60.0 + k) for k in range(32)])
    scale = 60 + 2 * np.floor(T / 0.1)
    assert_notes(found(scale), [(0.1 * k, 0.1 * (k + 1), 60.0 + 2 * k) for k in range(40)])


def test_glides_split_in_their_middle_and_drift_does_not() -> None:
    for glide_s in (0.05, 0.1, 0.2, 0.3):
        middle = 2 + glide_s / 2
        assert_notes(found(np.interp(T, [2, 2 + glide_s], [60, 67])), [(0, middle, 60), (middle, 4, 67)])
    assert_notes(found(60 + 0.7 * T / 4), [(0, 4, 60.35)])
    # A note that falls away at its end, as voices do, is still one.
    phrase = np.interp(T, [0, 1, 1.1, 2], [67, 66.5, 61, 61])
    assert_notes(found(np.where(T < 0.8, 64, phrase), T > 0.8), [(0.8, 1.05, 66.5), (1.05, 4, 61)])


def test_slip_is_no_note_and_a_scoop_belongs_to_its_note() -> None:
    assert_notes(found(np.where((T > 2) & (T < 2.06), 72, 60)), [(0, 4, 60)])  # an octave error of three frames
    voiced = T > 1
    assert_notes(found(np.interp(T, [1, 1.08], [57, 60]), voiced), [(1, 4, 60)])


def test_gaps() -> None:
    hole = (T >= 2) & (T < 2.045)
    assert hole.sum() == 3
    midi = np.full(len(T), 60.0)
    assert_notes(found(midi, ~hole), [(0, 4, 60)])
    assert_notes(found(midi, ~hole, max_gap_s=0.0), [(0, 2, 60), (2.045, 4, 60)])
    assert_notes(found(midi, ~((T > 2) & (T < 2.2))), [(0, 2, 60), (2.2, 4, 60)])
    assert_notes(found(np.where(T < 2, 60, 64), ~hole), [(0, 2.022, 60), (2.022, 4, 64)])
    assert found(midi, (T > 2) & (T < 2.07)) == []  # too short to be a note
    assert found(midi, np.zeros(len(T), bool)) == []
    assert notes([], []) == notes([0.016], [440.0]) == []


def naive_levels(midi: np.ndarray, split: float, price: float) -> float:
    """The least cost over all paths through levels of 10 cents, by the recursion written out."""
    cents = 100 * midi
    levels = np.arange(cents.min(), cents.max() + 10, 10)
    allowed = np.abs(levels[:, None] - levels[None]) >= split - 1e-6
    move = np.where(np.eye(len(levels), dtype=bool), 0.0, np.where(allowed, price, np.inf))
    cost = np.abs(cents[0] - levels)
    for pitch in cents[1:]:
        cost = (cost[None] + move).min(axis=1) + np.abs(pitch - levels)
    return float(cost.min())


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([80.0, 100.0, 200.0]),
)
def test_levels_cost_the_least(segments: list[tuple[int, int]], seed: int, split: float) -> None:
    from mmray.features.contour_export import _levels

    midi = 60 + np.concatenate([np.full(length, pitch) for pitch, length in segments])
    midi = midi + np.random.default_rng(seed).normal(0, 0.3, len(midi))
    cents, price = 100 * midi, 500.0
    path = _levels(cents, split, price)
    level = np.arange(cents.min(), cents.max() + 10, 10)[path]
    changes = np.abs(np.diff(level))
    if len(np.unique(path)) > 1:
        assert changes[changes > 0].min() >= split - 1e-6
    best = naive_levels(midi, split, price)
    if np.ptp(cents) >= split + 10:
        assert np.abs(cents - level).sum() + price * (changes > 0).sum() == pytest.approx(best)
    else:
        assert (path == path[0]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 24), st.integers(1, 40), st.booleans()), min_size=1, max_size=20))
def test_notes_are_in_order_long_enough_and_apart(segments: list[tuple[int, int, bool]]) -> None:
    f0 = np.concatenate([np.full(length, hz(50 + pitch) * voiced) for pitch, length, voiced in segments])
    result = notes(grid(len(f0)), f0)
    for note in result:
        assert note.end_s - note.start_s >= 0.1 - HOP_S
        assert 50 <= round(note.midi_pitch, 6) <= 74
    for one, other in itertools.pairwise(result):
        assert one.end_s <= other.start_s
        if one.end_s == other.start_s:
            assert abs(one.midi_pitch - other.midi_pitch) >= 0.8


def test_contours_that_are_none_are_refused() -> None:
    for times, f0, reason in (
        ([0, 1, 2], [1.0, 2.0], "one shape"),
        ([0, 1, 2], [1.0, -2.0, 1.0], "frame 1 is -2.0 Hz at 1.0 s"),
        ([0, 1, 2], [1.0, np.nan, 1.0], "frame 1 is nan Hz"),
        ([0, 1, 3], [1.0, 1.0, 1.0], "equal steps: put the contour on a grid"),
        ([0, 0, 0], [1.0, 1.0, 1.0], "equal steps"),
        ([2, 1, 0], [1.0, 1.0, 1.0], "equal steps"),
    ):
        with pytest.raises(ValueError, match=reason):
            notes(times, f0)
        with pytest.raises(ValueError, match=reason):
            list(sonified([np.zeros(10)], 16000, times, f0))
    for options in ({"split_cents": 0.0}, {"min_note_s": 0.0}, {"velocity": 0}, {"velocity": 128}):
        with pytest.raises(ValueError, match="expected above 0, above 0 and 1 to 127"):
            notes([0, 1], [1.0, 1.0], **options)  # type: ignore[arg-type]


# ---- MIDI


def test_midi_read_back(tmp_path: Path) -> None:
    melody = np.where(T < 1, 60, np.where(T < 2, 64.3, 55)) + 0.5 * np.sin(2 * np.pi * 6 * T)
    expected = notes(T, np.where((T > 2) & (T < 2.5), 0, hz(melody)), velocity=77)
    assert [round(note.midi_pitch) for note in expected] == [60, 64, 55]
    write_midi(tmp_path / "a.mid", expected)
    sounding: dict[int, float] = {}
    result, now = [], 0.0
    for message in mido.MidiFile(tmp_path / "a.mid"):  # iterates in seconds
        now += message.time
        if message.type == "note_on" and message.velocity > 0:
            assert not sounding
            sounding[message.note] = now
            assert message.velocity == 77
        elif message.type in ("note_off", "note_on"):
            result.append((sounding.pop(message.note), now, message.note))
    assert not sounding
    assert len(result) == 3
    for (start_s, end_s, pitch), note in zip(result, expected, strict=True):
        assert start_s == pytest.approx(note.start_s, abs=0.0006)
        assert end_s == pytest.approx(note.end_s, abs=0.0006)
        assert pitch == round(note.midi_pitch)


def test_midi_of_nothing_and_of_what_no_midi_file_can_hold(tmp_path: Path) -> None:
    write_midi(tmp_path / "a.mid", [])
    assert mido.MidiFile(tmp_path / "a.mid").length == 0
    for wrong in (
        [Note(0, 1, 60, 90), Note(0.5, 2, 60, 90)],
        [Note(1, 1, 60, 90)],
        [Note(0, 1, 128, 90)],
        [Note(0, 1, 60, 0)],
        [Note(-1, 1, 60, 90)],
    ):
        with pytest.raises(ValueError, match=rf"b\.mid: note {len(wrong) - 1} is Note"):
            write_midi(tmp_path / "b.mid", wrong)
    assert not (tmp_path / "b.mid").exists()


# ---- sound

RATE_HZ = 16000


def tone_of(times: np.ndarray, f0: np.ndarray, num_samples: int, cuts: list[int] | None = None) -> np.ndarray:
    """The tone alone."""
    blocks = np.split(np.zeros(num_samples, np.float32), sorted(cuts or []))
    return np.concatenate(list(sonified(blocks, RATE_HZ, times, f0, tone_level=1.0)))


def frequency_at(tone: np.ndarray, second: float, near_hz: float) -> float:
    """By the phase that the first harmonic gains in 10 ms, between two windows of 30 ms."""
    half, step = int(0.015 * RATE_HZ), int(0.005 * RATE_HZ)
    center = round(second * RATE_HZ)
    phases = []
    for at in (center - step, center + step):
        n = np.arange(-half, half)
        phases.append(np.sum(tone[at + n] * np.hanning(2 * half) * np.exp(-2j * np.pi * near_hz * n / RATE_HZ)))
    cycles = 2 * step * near_hz / RATE_HZ
    turned = (np.angle(phases[1] / phases[0]) / (2 * np.pi) - cycles + 0.5) % 1 - 0.5
    return near_hz + turned * RATE_HZ / (2 * step)


def test_the_tone_has_the_pitch_of_the_contour() -> None:
    f0 = hz(57 + 5 * np.sin(2 * np.pi * 0.4 * T) + 0.3 * np.sin(2 * np.pi * 5 * T))
    tone = tone_of(T, f0, 4 * RATE_HZ)
    for frame in range(5, 245, 3):
        cents = 1200 * np.log2(frequency_at(tone, T[frame], f0[frame]) / f0[frame])
        assert abs(cents) < 6, (frame, cents)
    steady = tone_of(T, np.full(len(T), 330.0), 4 * RATE_HZ)
    assert frequency_at(steady, 2, 330) == pytest.approx(330, abs=0.01)
    assert np.abs(steady).max() <= 1


def test_the_tone_is_silent_where_unvoiced_and_fades_at_the_edges() -> None:
    voiced = (T > 1) & (T < 2) | (T > 3) & (T < 3.5)
    tone = tone_of(T, np.where(voiced, 200.0, 0.0), 5 * RATE_HZ)
    second = np.arange(len(tone)) / RATE_HZ
    nearest = np.abs(second[:, None] - T[voiced][None]).min(axis=1)
    assert (tone[nearest > HOP_S / 2 + 1e-9] == 0).all()
    assert np.abs(tone[nearest < HOP_S / 2]).max() > 0.5
    # 200 Hz moves by 0.08 a sample at most; a hard edge in mid-wave would jump by much more.
    assert np.abs(np.diff(tone)).max() < 0.2
    assert np.sqrt(np.mean(tone[(second > 1.1) & (second < 1.9)] ** 2)) > 0.2


def test_the_tone_does_not_glide_across_a_gap_nor_fold_over() -> None:
    voiced = np.abs(T - 2) > 0.05
    f0 = np.where(T < 2, 200.0, 400.0) * voiced
    tone = tone_of(T, f0, 4 * RATE_HZ)
    last, first = T[(T < 2) & voiced][-1], T[(T > 2) & voiced][0]
    assert frequency_at(tone, last - 0.025, 200) == pytest.approx(200, abs=0.1)
    assert frequency_at(tone, first + 0.025, 400) == pytest.approx(400, abs=0.1)
    high = tone_of(T, np.full(len(T), 3000.0), 4 * RATE_HZ)  # its third and fourth harmonic have no room at 16 kHz
    spectrum = np.abs(np.fft.rfft(high[RATE_HZ : 2 * RATE_HZ] * np.hanning(RATE_HZ)))
    peaks = np.flatnonzero(spectrum > 1e-3 * spectrum.max())
    assert set(np.round(peaks, -2)) == {3000, 6000}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4 * RATE_HZ), max_size=6))
def test_blocks_leave_no_trace(cuts: list[int]) -> None:
    f0 = np.where(np.sin(3 * T) > -0.5, hz(57 + 5 * np.sin(2 * T)), 0)
    np.testing.assert_allclose(tone_of(T, f0, 4 * RATE_HZ, cuts), tone_of(T, f0, 4 * RATE_HZ), rtol=0, atol=1e-9)


@pytest.mark.parametrize("peak", [0.01, 0.9, 3.0])
def test_sonification_is_the_music_and_the_tone_and_never_clips(tmp_path: Path, peak: float) -> None:
    rate = 22050
    rng = np.random.default_rng(0)
    music = rng.standard_normal((4 * rate, 2)).astype(np.float32)
    mono = music.mean(axis=1)
    music *= peak / np.abs(mono).max()
    soundfile.write(tmp_path / "song.wav", music, rate, subtype="FLOAT")
    write_sonification(tmp_path / "out" / "a.wav", tmp_path / "song.wav", T, np.where(T < 2, 300.0, 0.0))
    info = soundfile.info(tmp_path / "out" / "a.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (rate, 1, 4 * rate, "PCM_16")
    heard, _ = soundfile.read(tmp_path / "out" / "a.wav")
    assert np.abs(heard).max() < 0.81
    scaled = 0.4 * mono / np.abs(mono).max()
    np.testing.assert_allclose(heard[2 * rate + 400 :], scaled[2 * rate + 400 :], atol=1e-4)
    tone = heard - scaled
    spectrum = np.abs(np.fft.rfft(tone[: 2 * rate] * np.hanning(2 * rate)))
    assert spectrum.argmax() / 2 == pytest.approx(300, abs=0.5)
    assert 0.2 < np.abs(tone).max() <= 0.4001


def test_sonification_of_silence_and_of_other_lengths(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), 8000)
    for times in (T, T[:10], T[:1], T[:0]):
        write_sonification(tmp_path / "a.wav", tmp_path / "silence.wav", times, np.full(len(times), 440.0))
        heard, _ = soundfile.read(tmp_path / "a.wav")
        assert heard.shape == (8000,)
        assert (np.abs(heard).max() > 0.1) == (len(times) > 1)
    with pytest.raises(ValueError, match="at most 1 together"):
        write_sonification(tmp_path / "b.wav", tmp_path / "silence.wav", T, T, music_level=0.7)
    with pytest.raises(ValueError, match=r"none\.wav"):
        write_sonification(tmp_path / "b.wav", tmp_path / "none.wav", T, T)
    assert not (tmp_path / "b.wav").exists()
