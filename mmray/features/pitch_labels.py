"""Pitch labels: the files in which corpora keep the pitch of a melody over time, read into one shape.

| reader | a file | times |
|---|---|---|
| `read_mir1k` | MIR-1K `.pv`: a MIDI pitch a line | 0.01 + 0.02 · i s |
| `read_ikala` | iKala `.pv`: the same | 0.016 + 0.032 · i s |
| `read_times_and_hz` | text of two columns, s and Hz: MIREX, ADC2004, MIREX05, CSV of most tools | in the file |

In each, what is not above 0 is unvoiced: mir_eval reads a negative frequency as a guess at the pitch of a frame that is
held to be unvoiced, and such a guess is no label.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmray.storage import at

PathLike = str | os.PathLike[str]

MAX_HZ = 20_000.0
"""A label above this is no pitch that anyone hears, but a value in another unit or column."""


@dataclass(frozen=True, eq=False)
class PitchTrack:
    """The pitch of a melody over time. A reader gives at least one label, with rising times from 0 on."""

    times_s: NDArray[np.float64]  # (N,)
    f0_hz: NDArray[np.float64]  # (N,), 0 = unvoiced


def midi_to_hz(midi: ArrayLike) -> NDArray[np.float64]:
    """Frequencies of MIDI pitches (69 = A4 = 440 Hz, 12 an octave, fractions allowed), of the same shape."""
    return np.asarray(440 * np.exp2((np.asarray(midi, np.float64) - 69) / 12))


def hz_to_midi(f0_hz: ArrayLike) -> NDArray[np.float64]:
    """MIDI pitches of frequencies above 0 Hz, of the same shape; ValueError on others."""
    f0_hz = np.asarray(f0_hz, np.float64)
    wrong = f0_hz[~(f0_hz > 0)]
    if len(wrong) > 0:
        raise ValueError(f"f0_hz has the value {wrong[0]}, which has no pitch; pass voiced frames only")
    return np.asarray(69 + 12 * np.log2(f0_hz / 440))


def read_mir1k(path: PathLike, first_s: float = 0.01) -> PitchTrack:
    """A `.pv` file of MIR-1K: MIDI pitches every 20 ms, 0 = unvoiced.

    Hsu and Jang, "On the Improvement of Singing Voice Separation for Monaural Recordings Using the MIR-1K Dataset"
    (IEEE TASLP 18(2), 2010). The first label is put at 10 ms, the middle of its hop, as in published evaluations.
    The labels themselves follow the recorded voice best with `first_s=0.02`, the middle of a window of 40 ms.
    """
    return _read_midi(path, first_s, 0.02)


def read_ikala(path: PathLike) -> PitchTrack:
    """A `.pv` file of iKala: semitones (MIDI pitches) every 32 ms, 0 = unvoiced.

    Chan et al., "Vocal Activity Informed Singing Voice Separation with the iKala Dataset" (ICASSP 2015). A label is the
    pitch of a frame of 32 ms, the first from 0 s on, and so stands at the middle of it: 0.016 + 0.032 · i s. mirdata
    reads it in the same way.
    """
    return _read_midi(path, 0.016, 0.032)


def read_times_and_hz(path: PathLike) -> PitchTrack:
    """Text with a time in seconds and a frequency in Hz a line; 0 Hz, or less, = unvoiced.

    Columns are separated by semicolons, else by commas, else by blanks and tabs; numbers have decimal points. What
    follows # or % is a comment, and the first other line may be a header. A third column, a confidence in most files,
    is not read: the second tells what is voiced.
    """
    times_s: list[float] = []
    f0_hz: list[float] = []
    line_numbers: list[int] = []
    num_columns = None
    is_first = True
    for number, text in _lines(path):
        text = text.partition("#")[0].partition("%")[0].strip()
        if not text:
            continue
        fields = _fields(text)
        may_be_header, is_first = is_first, False
        if may_be_header and not any(field.startswith(_NUMBER_STARTS) or _is_number(field) for field in fields):
            continue
        num_columns = num_columns or len(fields)
        if len(fields) != num_columns or num_columns not in (2, 3):
            expected = (
                "2 (time in s, frequency in Hz) or 3" if num_columns not in (2, 3) else f"{num_columns} as before"
            )
            raise ValueError(f"{path}, line {number}: {len(fields)} columns in {text!r}; expected {expected}")
        times_s.append(_number(path, number, fields[0]))
        f0_hz.append(_number(path, number, fields[1]))
        line_numbers.append(number)
    return _checked(path, line_numbers, np.array(times_s), np.array(f0_hz), f0_hz)


def check_covers(
    track: PitchTrack, duration_s: float, path: PathLike, max_overrun_s: float = 0.1, max_gap_s: float = 1.0
) -> None:
    """ValueError where the labels can't belong to a sound of `duration_s` seconds; `path` is named in it.

    They may end up to `max_overrun_s` after it, and leave up to `max_gap_s` unlabelled before the first and after the
    last of them. In MIR-1K the last label stands 30 to 50 ms before the end.
    """
    first_s, last_s = float(track.times_s[0]), float(track.times_s[-1])
    overrun_s, gap_s = last_s - duration_s, max(first_s, duration_s - last_s)
    if overrun_s > max_overrun_s:
        reason = f"{overrun_s:.3f} s beyond its end, where {max_overrun_s} s are allowed"
        remedy = "check that the two files belong together"
    elif gap_s > max_gap_s:
        reason = f"{gap_s:.3f} s of it without labels, where {max_gap_s} s are allowed"
        remedy = "check that the two files belong together, and label unvoiced time with 0 Hz"
    else:
        return
    raise ValueError(
        f"{path}: the labels reach from {first_s:.3f} to {last_s:.3f} s, but the sound lasts {duration_s:.3f} s: "
        f"{reason}; {remedy}"
    )


_NUMBER_STARTS = tuple("0123456789.+-")  # so a header is no line of damaged numbers


def _lines(path: PathLike) -> Iterator[tuple[int, str]]:
    """Numbered from 1, without their ends and a byte order mark."""
    try:
        with at(path).open(
            encoding="utf-8-sig", errors="replace"
        ) as file:  # numbers are ASCII; a comment may be anything
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\n")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}; check the path and its permissions") from error


def _fields(text: str) -> list[str]:
    for separator in (";", ","):
        if separator in text:
            return [field.strip() for field in text.removesuffix(separator).split(separator)]
    return text.split()


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _number(path: PathLike, line_number: int, field: str) -> float:
    if not _is_number(field):
        raise ValueError(
            f"{path}, line {line_number}: {field!r} is not a number; write numbers with decimal points, in columns "
            "separated by blanks, tabs, commas or semicolons, and comments after #"
        )
    return float(field)


def _read_midi(path: PathLike, first_s: float, hop_s: float) -> PitchTrack:
    """One MIDI pitch a line; label i at first_s + hop_s · i."""
    midi: list[float] = []
    blank = None
    for number, text in _lines(path):
        if not text.strip():
            blank = blank or number
            continue
        if blank is not None:  # what follows would be taken for earlier than it is
            raise ValueError(f"{path}, line {blank}: blank; write 0 for an unvoiced frame")
        midi.append(_number(path, number, text.strip()))
    values = np.array(midi)
    voiced = values > 0
    f0_hz = np.where(voiced, midi_to_hz(np.clip(values, 0, 1000)), values)  # 1000 is far beyond MAX_HZ, and no overflow
    times_s = first_s + hop_s * np.arange(len(midi), dtype=np.float64)
    return _checked(path, range(1, len(midi) + 1), times_s, f0_hz, midi)


def _checked(
    path: PathLike,
    line_numbers: Sequence[int],
    times_s: NDArray[np.float64],
    f0_hz: NDArray[np.float64],
    written: Sequence[float],
) -> PitchTrack:
    """The track. `written` are the pitches as they stand in the file, for the messages."""
    if len(times_s) == 0:
        raise ValueError(f"{path}: no labels in the file; give one line a frame, 0 where nobody sings")

    def refuse(wrong: NDArray[np.bool_], what: str, remedy: str) -> None:
        if wrong.any():
            i = int(wrong.argmax())
            before = f" after {times_s[i - 1]} s" if i > 0 else ""
            found = what.format(time=times_s[i], before=before, pitch=written[i])
            raise ValueError(f"{path}, line {line_numbers[i]}: {found}; {remedy}")

    refuse(~np.isfinite(times_s), "time {time}", "write a time in seconds")
    refuse(~np.isfinite(f0_hz), "pitch {pitch}", "write 0 for an unvoiced frame")
    steps = np.diff(times_s, prepend=-1.0)
    refuse(times_s < 0, "time {time} s", "times count from the start of the sound, at 0")
    refuse(steps == 0, "time {time} s stands there twice", "leave one, or write times with more digits")
    refuse(steps < 0, "time {time} s{before}", "sort the lines; time is the first column")
    refuse(
        f0_hz > MAX_HZ,
        "pitch {pitch} is above 20 kHz",
        "check the unit (Hz in a file with times, MIDI pitch in one without) and the order of the columns",
    )
    return PitchTrack(times_s, np.where(f0_hz > 0, f0_hz, 0.0))
