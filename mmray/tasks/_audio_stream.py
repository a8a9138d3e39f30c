"""A classifier of sound along a recording: of a file of any length, or of samples that arrive while they are played.

`predict` sees windows of `window_s` seconds, one every `hop_s`. Which window stands for a time t is a choice:

- "centred", from t - window_s / 2 to t + window_s / 2, at t = 0, hop_s, 2 hop_s, ... before the end: what is heard
  around t. What a picture or a table over a recording should show, and the default for files.
- "trailing", from t - window_s to t, at t = hop_s, 2 hop_s, ... up to the end, and at the end itself: what was known
  at t. Where music changes, results follow half a window later than centred ones. The default for live input, as the
  result is there at time t, and the first one after hop_s.

Nothing is invented beyond the two ends: windows there are cut to what the recording has, so some are shorter than
window_s. Either way every recording has at least one result, and memory is that of three windows and a block.

Latency of live input. A result is given as soon as the last sample of its window is there: at once where the rates
agree. Otherwise the resampler holds back samples, at most 0.12 s of them at 8 kHz and up, 0.04 to 0.05 s at 22.05,
44.1 and 48 kHz; that, the centred window's second half, and the time that `predict` takes are all there is to wait.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO, Literal, TextIO

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from mmray.features import audio
from mmray.files import written_whole

Floats = NDArray[np.float32]
Predict = Callable[[Floats], ArrayLike]
"""Samples (n,) float32 at the model's rate, n >= 1, to probabilities (K,)."""
Align = Literal["centred", "trailing"]
Result = tuple[float, Floats]
"""A time in s, and the probabilities (K,) of the window that stands for it."""

PcmFormat = Literal["s16le", "f32le"]
_PCM: dict[str, tuple[str, float]] = {"s16le": ("<i2", 32768.0), "f32le": ("<f4", 1.0)}  # type, and what is full scale
_MOST_BYTES = 1 << 16  # read at once: what a pipe holds


def timeline(
    path: audio.PathLike,
    predict: Predict,
    sample_rate_hz: int,
    window_s: float,
    hop_s: float,
    align: Align = "centred",
    mix: audio.Mix = "mean",
) -> Iterator[Result]:
    """What `predict` says along a sound file, in order of time. ValueError as `audio.blocks`, naming the file."""
    windows = _Windows(sample_rate_hz, window_s, hop_s, align)
    return windows.results(audio.blocks(path, sample_rate_hz, mix), predict)


def stream_pcm(
    stdin: BinaryIO,
    format: PcmFormat,
    rate_hz: int,
    channels: int,
    predict: Predict,
    sample_rate_hz: int,
    window_s: float,
    hop_s: float,
    align: Align = "trailing",
) -> Iterator[Result]:
    """What `predict` says along raw samples that arrive on `stdin`, each result as soon as it can be known.

    `stdin` holds frames of `channels` interleaved samples at `rate_hz`, without a header, as `ffmpeg -f s16le -ac 2
    -ar 44100 -` writes them; f32le has full scale at ±1. Channels are averaged. Reads of any number of bytes will do,
    down to one; at the end of the input its last results follow, and a frame of which a part is missing is dropped.
    ValueError where a setting can't work, `stdin` doesn't wait for input, a sample is not finite, or none arrives.
    """
    if format not in _PCM:
        raise ValueError(f"format={format!r} of raw samples; choose from {', '.join(_PCM)}")
    if channels < 1 or rate_hz < 1:
        raise ValueError(f"channels={channels}, rate_hz={rate_hz}; give at least 1 of each")
    windows = _Windows(sample_rate_hz, window_s, hop_s, align)
    return windows.results(_resampled(_pcm(stdin, format, channels), rate_hz, sample_rate_hz), predict)


def write_timeline_csv(out: Path | TextIO, results: Iterable[Result], class_names: Sequence[str]) -> None:
    """Write results as a table: time_s, predicted (the most probable class), and the probability of each class.

    The header has the names of the classes. A path is written whole or not at all; to an open file, such as standard
    output, each line goes out at once.
    """
    if isinstance(out, PurePath):  # also one in a store
        with written_whole(out) as aside, aside.open("w", encoding="utf-8", newline="") as file:
            write_timeline_csv(file, results, class_names)
        return
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["time_s", "predicted", *class_names])
    for time_s, probabilities in results:
        if len(probabilities) != len(class_names):
            raise ValueError(f"{len(probabilities)} probabilities at {time_s:.3f} s for {len(class_names)} classes")
        values = [f"{value:.6f}" for value in probabilities.tolist()]
        table.writerow([f"{time_s:.3f}", class_names[int(probabilities.argmax())], *values])
        out.flush()


class _Windows:
    """Windows of a stream of samples, each as soon as its last sample is there."""

    def __init__(self, sample_rate_hz: int, window_s: float, hop_s: float, align: Align) -> None:
        if align not in ("centred", "trailing"):
            raise ValueError(f"align={align!r}; choose centred or trailing")
        for name, seconds in (("window_s", window_s), ("hop_s", hop_s)):
            if not 1 <= seconds * sample_rate_hz < 2**31:
                raise ValueError(
                    f"{name}={seconds} at {sample_rate_hz} Hz; give at least one sample, and hours at most"
                )
        self.rate = sample_rate_hz
        self.hop_s = hop_s
        self.num_samples = round(window_s * sample_rate_hz)
        self.is_trailing = align == "trailing"
        self.num_after = 0 if self.is_trailing else self.num_samples - self.num_samples // 2

    def results(self, blocks: Iterable[Floats], predict: Predict) -> Iterator[Result]:
        """`predict` over the windows of the samples in `blocks`, (n,) each."""
        newest = _Newest(self.num_samples)
        turn = int(self.is_trailing)  # the next result is that of the time turn * hop_s
        for block in blocks:
            while len(block):
                due = self._at(turn) + self.num_after  # samples that must be there
                num_samples = min(max(due - newest.num_heard, 0), len(block))
                newest.add(block[:num_samples])
                block = block[num_samples:]
                if newest.num_heard >= due:
                    yield turn * self.hop_s, _predicted(predict, newest.last(self.num_samples))
                    turn += 1
        num_heard = newest.num_heard
        if num_heard == 0:
            raise ValueError("the input ended before its first sample; check the program that should deliver samples")
        if self.is_trailing:
            if self._at(turn - 1) < num_heard:
                yield num_heard / self.rate, _predicted(predict, newest.last(self.num_samples))
            return
        while (at := self._at(turn)) < num_heard:
            yield turn * self.hop_s, _predicted(predict, newest.last(num_heard - at + self.num_samples // 2))
            turn += 1

    def _at(self, turn: int) -> int:
        return round(turn * self.hop_s * self.rate)


class _Newest:
    """The newest samples of a stream; each is copied about once, however small the pieces in which they come."""

    def __init__(self, num_kept: int) -> None:
        self.num_heard = 0
        self._num_kept = num_kept
        self._held = np.empty(2 * num_kept, np.float32)
        self._end = 0

    def add(self, piece: Floats) -> None:
        """Append samples (n,)."""
        self.num_heard += len(piece)
        piece = piece[-self._num_kept :]
        if self._end + len(piece) > len(self._held):
            kept = min(self._end, self._num_kept)
            self._held[:kept] = self._held[self._end - kept : self._end]
            self._end = kept
        self._held[self._end : self._end + len(piece)] = piece
        self._end += len(piece)

    def last(self, num_samples: int) -> Floats:
        """A copy of the last `num_samples`, `num_kept` at most, or of all there were if these are fewer."""
        return self._held[max(0, self._end - num_samples) : self._end].copy()


def _predicted(predict: Predict, samples: Floats) -> Floats:
    return np.asarray(predict(samples), np.float32)


def _pcm(stdin: BinaryIO, format: PcmFormat, channels: int) -> Iterator[Floats]:
    """The samples that arrive, (n,), as they arrive."""
    element, full_scale = _PCM[format]
    frame_bytes = channels * np.dtype(element).itemsize
    # A buffered file's `read` waits for all that is asked for; its `read1` and a raw file's `read` give what is there.
    read: Callable[[int], bytes] = getattr(stdin, "read1", stdin.read)
    rest = b""
    num_frames = 0
    if not _is_blocking(stdin):  # nothing there for a moment would look like the end
        raise ValueError("the input doesn't wait for samples: it is set to non-blocking; read from a pipe of its own")
    while arrived := read(_MOST_BYTES):
        rest += arrived
        whole = len(rest) - len(rest) % frame_bytes
        if whole == 0:
            continue
        frames = np.frombuffer(rest[:whole], element).reshape(-1, channels).astype(np.float32)
        rest = rest[whole:]
        finite = np.isfinite(frames).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"frame {num_frames + int(finite.argmin())} of the input is not finite; check that its format is "
                f"{format} with {channels} channels"
            )
        num_frames += len(frames)
        yield frames.mean(axis=1) / np.float32(full_scale)


def _is_blocking(stdin: BinaryIO) -> bool:
    try:
        return os.get_blocking(stdin.fileno())
    except OSError:  # no file of the system's
        return True


def _resampled(blocks: Iterator[Floats], rate_hz: int, sample_rate_hz: int) -> Iterator[Floats]:
    """Samples at another rate, with the quality that files are read with."""
    if rate_hz == sample_rate_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)
