"""A classifier along a recording: which samples make a window, and how soon a live result is there."""

from __future__ import annotations

import csv
import io
import itertools
import os
import queue
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given
from hypothesis import strategies as st

from mmray.tasks._audio_stream import stream_pcm, timeline, write_timeline_csv

RATE = 1_000


def ends(samples: np.ndarray) -> np.ndarray:
    """What a window is, where sample i of the recording is i: its first sample and the one after its last."""
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(np.diff(samples), 1)
    return np.array([samples[0], samples[-1] + 1])


def counting(num_samples: int) -> bytes:
    return np.arange(num_samples, dtype="<f4").tobytes()


class Delivered(io.RawIOBase):
    """An input that gives no more than the next of `pieces` a read."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = iter(pieces)
        self.num_given = 0

    def read(self, size: int = -1) -> bytes:
        piece = next(self.pieces, b"")
        assert len(piece) <= size
        self.num_given += len(piece)
        return piece


def windows(stdin: Any, window_s: float, hop_s: float, **options: Any) -> list[tuple[float, int, int]]:
    results = stream_pcm(stdin, "f32le", RATE, 1, ends, RATE, window_s, hop_s, **options)
    return [(round(time_s, 6), int(first), int(last)) for time_s, (first, last) in results]


def test_trailing_windows_end_at_their_time_and_are_short_at_the_start() -> None:
    assert windows(io.BytesIO(counting(2_300)), 1.0, 0.5) == [
        (0.5, 0, 500),
        (1.0, 0, 1000),
        (1.5, 500, 1500),
        (2.0, 1000, 2000),
        (2.3, 1300, 2300),
    ]
    assert windows(io.BytesIO(counting(1_000)), 1.0, 0.5)[-1] == (1.0, 0, 1000)
    assert windows(io.BytesIO(counting(7)), 1.0, 0.5) == [(0.007, 0, 7)]


def test_centred_windows_lie_around_their_time_and_are_cut_at_both_ends() -> None:
    assert windows(io.BytesIO(counting(2_300)), 1.0, 0.5, align="centred") == [
        (0.0, 0, 500),
        (0.5, 0, 1000),
        (1.0, 500, 1500),
        (1.5, 1000, 2000),
        (2.0, 1500, 2300),
    ]
    assert windows(io.BytesIO(counting(7)), 1.0, 0.5, align="centred") == [(0.0, 0, 7)]


@given(
    num_samples=st.integers(1, 4_000),
    window_s=st.floats(0.001, 5),
    hop_s=st.floats(0.005, 3),
    align=st.sampled_from(["centred", "trailing"]),
    data=st.data(),
)
def test_windows_are_those_of_the_definition_however_the_bytes_arrive(
    num_samples: int, window_s: float, hop_s: float, align: Any, data: st.DataObject
) -> None:
    size = round(window_s * RATE)
    half = size // 2
    if align == "trailing":
        times = [
            turn * hop_s for turn in itertools.takewhile(lambda k: round(k * hop_s * RATE) <= num_samples, count(1))
        ]
        at = [round(time_s * RATE) for time_s in times]
        if not at or at[-1] < num_samples:
            times, at = [*times, num_samples / RATE], [*at, num_samples]
        spans = [(max(0, t - size), t) for t in at]
    else:
        times = [
            turn * hop_s for turn in itertools.takewhile(lambda k: round(k * hop_s * RATE) < num_samples, count(0))
        ]
        at = [round(time_s * RATE) for time_s in times]
        spans = [(max(0, t - half), min(t - half + size, num_samples)) for t in at]
    whole = counting(num_samples) + b"\1" * data.draw(st.integers(0, 3))  # a frame that is not whole
    cuts = sorted(data.draw(st.lists(st.integers(1, len(whole) - 1), max_size=20)))
    pieces = [whole[a:b] for a, b in itertools.pairwise([0, *cuts, len(whole)]) if a < b]
    expected = [(round(time_s, 6), *span) for time_s, span in zip(times, spans, strict=True)]
    assert windows(Delivered(pieces), window_s, hop_s, align=align) == expected


def count(first: int) -> Iterator[int]:
    return itertools.count(first)


@pytest.mark.parametrize(("align", "late_s"), [("trailing", 0.0), ("centred", 0.2)])
def test_a_result_comes_with_the_last_sample_of_its_window(align: Any, late_s: float) -> None:
    """Pieces of 10 ms: when a result comes, no piece was read after that with its last sample."""
    stdin = Delivered([counting(3_000)[i : i + 40] for i in range(0, 12_000, 40)])
    results = stream_pcm(stdin, "f32le", RATE, 1, ends, RATE, 0.4, 0.1, align=align)
    for time_s, _ in itertools.islice(results, 20):
        assert stdin.num_given / 4 == pytest.approx((time_s + late_s) * RATE, abs=1e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampling_holds_back_no_more_than_the_documented_time(rate_hz: int) -> None:
    piece = np.zeros(rate_hz // 100, "<i2").tobytes()
    stdin = Delivered([piece] * 300)
    results = stream_pcm(stdin, "s16le", rate_hz, 1, np.mean, 16_000, 1.0, 0.1)  # type: ignore[arg-type]
    lag_s = [stdin.num_given / 2 / rate_hz - time_s for time_s, _ in itertools.islice(results, 25)]
    assert min(lag_s) >= 0
    assert max(lag_s) <= 0.13  # 0.12 and a piece
    if rate_hz in (22_050, 44_100, 48_000):
        assert max(lag_s) <= 0.06


def test_a_slow_pipe_gets_each_result_before_it_delivers_more() -> None:
    """The writer waits for each result: a reader that waited for full blocks would never have one."""
    reader, writer = os.pipe()
    answers: queue.Queue[tuple[float, Any]] = queue.Queue()

    def listen() -> None:
        with open(reader, "rb") as stdin:
            for result in stream_pcm(stdin, "f32le", RATE, 1, ends, RATE, 0.2, 0.1):
                answers.put(result)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    sound = counting(550)
    for turn in range(5):
        os.write(writer, sound[turn * 400 : turn * 400 + 397])
        with pytest.raises(queue.Empty):
            answers.get(timeout=0.05)
        os.write(writer, sound[turn * 400 + 397 : (turn + 1) * 400])
        time_s, span = answers.get(timeout=30)
        assert time_s == pytest.approx(0.1 * (turn + 1))
        assert span.tolist() == [max(0, 100 * turn - 100), 100 * (turn + 1)]
    os.write(writer, sound[2_000:])
    os.close(writer)
    time_s, span = answers.get(timeout=30)
    assert (time_s, span.tolist()) == (0.55, [350, 550])
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert answers.empty()


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "song.wav"
    random = np.random.default_rng(0)
    soundfile.write(path, random.uniform(-0.5, 0.5, (5 * 44_100, 2)), 44_100, subtype="PCM_16")
    return path


@pytest.mark.parametrize("align", ["centred", "trailing"])
@pytest.mark.parametrize("sample_rate_hz", [44_100, 16_000])
def test_a_file_and_its_samples_on_a_pipe_give_the_same(song: Path, align: Any, sample_rate_hz: int) -> None:
    raw = song.read_bytes()[44:]
    pieces = [raw[i : i + 4_999] for i in range(0, len(raw), 4_999)]

    def predict(samples: np.ndarray) -> np.ndarray:
        return np.array([len(samples), samples.mean(), samples.std(), samples[0], samples[-1]])

    of_file = list(timeline(song, predict, sample_rate_hz, 1.5, 0.25, align=align))
    live = list(stream_pcm(Delivered(pieces), "s16le", 44_100, 2, predict, sample_rate_hz, 1.5, 0.25, align=align))
    assert [time_s for time_s, _ in of_file] == [time_s for time_s, _ in live]
    np.testing.assert_allclose([p for _, p in of_file], [p for _, p in live], rtol=1e-5, atol=1e-6)
    assert len(live) == 20


def test_windows_of_a_file_are_cut_from_all_of_it(song: Path) -> None:
    whole = soxr.resample(soundfile.read(song)[0].mean(1), 44_100, 16_000)
    for time_s, samples in timeline(song, lambda samples: samples, 16_000, 1.0, 0.7):
        first, last = round(time_s * 16_000) - 8_000, round(time_s * 16_000) + 8_000
        np.testing.assert_allclose(samples, whole[max(first, 0) : last], atol=1e-5)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(600 * 16_000, np.int16), 16_000)
    tracemalloc.start()
    num_results = sum(1 for _ in timeline(path, lambda samples: [samples[-1]], 16_000, 5.0, 5.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_results == 120
    assert peak < 8e6  # all samples: 38e6


def test_integers_and_channels_are_read_as_files_are() -> None:
    frames = np.array([[-32768, 0], [16384, 16384], [32767, -32767]], "<i2")
    results = list(stream_pcm(io.BytesIO(frames.tobytes()), "s16le", 10, 2, lambda x: x, 10, 0.3, 0.3))
    assert [probabilities.tolist() for _, probabilities in results] == [[-0.5, 0.5, 0.0]]


def test_what_can_not_work_is_refused(tmp_path: Path) -> None:
    def run(data: bytes = b"", format: Any = "f32le", rate_hz: int = 10, channels: int = 1, **options: Any) -> None:
        settings = {"window_s": 1.0, "hop_s": 1.0} | options
        list(stream_pcm(io.BytesIO(data), format, rate_hz, channels, np.mean, 10, **settings))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="choose from s16le, f32le"):
        run(format="s24le")
    with pytest.raises(ValueError, match="channels=0"):
        run(channels=0)
    with pytest.raises(ValueError, match=r"hop_s=0\.01 at 10 Hz"):
        run(hop_s=0.01)
    with pytest.raises(ValueError, match="window_s=nan"):
        run(window_s=float("nan"))
    with pytest.raises(ValueError, match="centred or trailing"):
        run(align="left")
    with pytest.raises(ValueError, match="ended before its first sample"):
        run(b"\0\0\0")
    with pytest.raises(ValueError, match=r"frame 2 of the input is not finite; .* f32le with 1 channels"):
        run(np.array([0, 1, np.inf], "<f4").tobytes())
    with pytest.raises(ValueError, match=r"no\.wav can't be read"):
        list(timeline(tmp_path / "no.wav", np.mean, 10, 1, 1))  # type: ignore[arg-type]


def test_an_input_that_does_not_wait_is_refused_not_taken_for_its_end() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(reader, "rb") as stdin, pytest.raises(ValueError, match="non-blocking"):
        list(stream_pcm(stdin, "f32le", RATE, 1, ends, RATE, 1, 1))
    os.close(writer)


RESULTS = [(0.0, np.array([0.25, 0.75], np.float32)), (0.5, np.array([1.0, 0.0], np.float32))]


def test_table_has_a_line_a_result(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.csv"
    write_timeline_csv(path, RESULTS, ["Angry, loud", "Glücklich"])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"time_s": "0.000", "predicted": "Glücklich", "Angry, loud": "0.250000", "Glücklich": "0.750000"},
        {"time_s": "0.500", "predicted": "Angry, loud", "Angry, loud": "1.000000", "Glücklich": "0.000000"},
    ]
    assert path.read_bytes().count(b"\n") == 3
    assert b"\r" not in path.read_bytes()


def test_lines_go_out_as_results_come_and_a_broken_file_never_appears(tmp_path: Path) -> None:
    flushed: list[int] = []

    class Out(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue().count("\n"))

    write_timeline_csv(Out(), iter(RESULTS), ["a", "b"])
    assert flushed == [2, 3]

    def broken() -> Iterator[Any]:
        yield RESULTS[0]
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        write_timeline_csv(tmp_path / "t.csv", broken(), ["a", "b"])
    with pytest.raises(ValueError, match=r"2 probabilities at 0\.000 s for 3 classes"):
        write_timeline_csv(tmp_path / "t.csv", RESULTS, ["a", "b", "c"])
    assert list(tmp_path.iterdir()) == []
