"""What people do with a melody contour: a table of it, notes for a sequencer, and listening to it over the music.

A contour is T pitches in Hz at rising times in seconds, 0 where there is no melody. `write_csv` takes any times; notes
and sound need them at equal steps, as `contour.to_grid` gives them: a pitch then holds from half a step before its time
to half a step after.

How notes are found. Within a voiced stretch the contour, in cents, is explained by a sequence of levels: the one with
the least sum of |pitch - level| over time plus a price for each change of level. Changes smaller than `split_cents`
are forbidden, and one costs `split_cents` for the time `min_note_s`. So a vibrato stays one note, as both its halves
are too short and too near to be worth the price; a lasting jump is not worth being left unexplained; slow drift does
not split. The minimum is exact, by dynamic programming. Levels that a glide only passes are then cut in their middle
between the notes around them; a long slow glide is left as a row of short notes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmray.features import audio
from mmray.features.native import compiled
from mmray.files import written_whole

Floats = NDArray[np.float64]

_LEVEL_CENTS = 10.0  # between the levels that notes are found on; the pitch of a note is its median, not a level
_GLIDE_CENTS = 200.0  # a level over which the pitch runs farther than this, from its begin to its end, is no note
_TICKS_PER_BEAT = 500  # at MIDI's default tempo, half a second a beat: a tick is a millisecond


def write_csv(path: Path, times_s: ArrayLike, f0_hz: ArrayLike, confidence: ArrayLike | None = None) -> None:
    """Write a contour as text, one line a frame: time in s (6 decimals), pitch in Hz (4 decimals), 0 = unvoiced.

    Separated by commas, after a comment line `# time_s,f0_hz`, where the name ends in .csv:
    `mir_eval.io.load_time_series(path, delimiter=",")` reads it, and so does mmray as a label. Separated by tabs and
    without any other line elsewhere, for instance in a .txt: MIREX's format, and what mir_eval reads by default.

    `confidence`, 0 to 1, is a third column where it is given. Tables and mmray read that as well, but programs that
    expect two columns do not: `mir_eval.io.load_delimited(path, [float] * 3, delimiter=",")`.
    """
    given = [times_s, f0_hz] if confidence is None else [times_s, f0_hz, confidence]
    columns = [np.asarray(column, np.float64) for column in given]
    if any(column.ndim != 1 or len(column) != len(columns[0]) or not np.isfinite(column).all() for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise ValueError(f"{path}: the columns have shapes {shapes}; expected finite numbers and one shape (frames,)")
    table = path.suffix.lower() == ".csv"
    separator = "," if table else "\t"
    line = separator.join(["%.6f", "%.4f", "%.4f"][: len(columns)]) + "\n"
    with written_whole(path) as aside, aside.open("w", encoding="ascii", newline="\n") as file:
        if table:
            file.write("# " + ",".join(["time_s", "f0_hz", "confidence"][: len(columns)]) + "\n")
        file.writelines(line % row for row in zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class Note:
    """A note from `start_s` to `end_s`; `midi_pitch` in semitones with fractions, 69 = 440 Hz; `velocity` 1 to 127."""

    start_s: float
    end_s: float
    midi_pitch: float
    velocity: int


def notes(
    times_s: ArrayLike,
    f0_hz: ArrayLike,
    *,
    split_cents: float = 80.0,
    min_note_s: float = 0.1,
    max_gap_s: float = 0.05,
    velocity: int = 90,
) -> list[Note]:
    """The notes of a contour, in order and without overlap; how they are found is told above.

    A jump by `split_cents` or more begins a new note if it lasts, about `min_note_s` at `split_cents`. A note shorter
    than `min_note_s` joins the neighbour it touches whose pitch is nearer, and is left out if it touches none. A gap of
    at most `max_gap_s` does not end a note. Pitch: the median of the note's voiced frames, not rounded. A contour does
    not know loudness, so all have the same `velocity`.
    ValueError unless `split_cents` and `min_note_s` are above 0 and `velocity` is 1 to 127.
    """
    times, f0, hop_s = _even_contour(times_s, f0_hz)
    if split_cents <= 0 or min_note_s <= 0 or not 1 <= velocity <= 127:
        raise ValueError(
            f"split_cents={split_cents}, min_note_s={min_note_s}, velocity={velocity}; "
            "expected above 0, above 0 and 1 to 127"
        )
    if hop_s == 0:  # a single frame has no length
        return []
    voiced = f0 > 0
    cents = 1200 * np.log2(np.where(voiced, f0, 1.0) / 440) + 6900
    whole = voiced.copy()
    for start, stop in _stretches(~voiced):
        if start > 0 and stop < len(f0) and (stop - start) * hop_s <= max_gap_s * (1 + 1e-6):
            whole[start:stop] = True
            cents[start:stop] = np.interp(np.arange(start, stop), [start - 1, stop], cents[[start - 1, stop]])
    min_frames = max(1, math.floor(min_note_s / hop_s * (1 + 1e-6)))
    edges_s = np.append(np.maximum(times - hop_s / 2, 0), times[-1] + hop_s / 2).tolist()
    found = []
    for start, stop in _stretches(whole):
        bounds = start + _note_bounds(cents[start:stop], split_cents, min_note_s / hop_s, min_frames)
        for first, end in itertools.pairwise(bounds.tolist()):
            if end - first >= min_frames:
                pitch = float(np.median(cents[first:end][voiced[first:end]])) / 100
                found.append(Note(edges_s[first], edges_s[end], pitch, velocity))
    return found


def write_midi(path: Path, notes: Iterable[Note]) -> None:
    """Write notes as a standard MIDI file of one track, to the millisecond, pitches rounded to semitones.

    ValueError, naming the note, unless they are in order, do not overlap, and fit MIDI's 128 pitches and velocities.
    """
    import mido

    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=500_000))
    now = 0
    for number, note in enumerate(notes):
        start, end, pitch = round(note.start_s * 1000), round(note.end_s * 1000), round(note.midi_pitch)
        if not (now <= start < end and 0 <= pitch <= 127 and 1 <= note.velocity <= 127):
            raise ValueError(
                f"{path}: note {number} is {note}; expected start >= the end before it, {now / 1000} s, an end after "
                "its start, a pitch of 0 to 127 and a velocity of 1 to 127"
            )
        track.append(mido.Message("note_on", note=pitch, velocity=note.velocity, time=start - now))
        track.append(mido.Message("note_off", note=pitch, velocity=0, time=end - start))
        now = end
    file = mido.MidiFile(type=0, ticks_per_beat=_TICKS_PER_BEAT, tracks=[track])
    with written_whole(path) as aside:
        file.save(str(aside))


_HARMONICS = (1.0, 0.5, 0.25, 0.125)  # amplitudes: a tone that is heard through music, and does not hurt
_FADE_S = 0.01


def sonified(
    music: Iterable[NDArray[np.floating]],
    sample_rate_hz: int,
    times_s: ArrayLike,
    f0_hz: ArrayLike,
    *,
    music_gain: float = 1.0,
    tone_level: float = 0.4,
) -> Iterator[Floats]:
    """Blocks of music (n,), times `music_gain`, with the contour as a tone of at most `tone_level` over them.

    The tone is a few harmonics of a sine whose phase never jumps. Its pitch is interpolated between frames, linearly in
    cents; each voiced stretch is faded in and out within its first and last 10 ms, and elsewhere the tone is exactly 0.
    Harmonics fade out towards half the sampling rate. However the music is cut into blocks, the samples are the same.
    """
    times, f0, hop_s = _even_contour(times_s, f0_hz)
    stretches = _stretches(f0 > 0)
    starts, ends = times[stretches[:, 0]] - hop_s / 2, times[stretches[:, 1] - 1] + hop_s / 2
    # What is interpolated: the voiced frames, and the ends of the stretches, so that nothing glides across a gap.
    knots_s = np.concatenate([times[f0 > 0], starts, ends])
    order = np.argsort(knots_s, kind="stable")
    knots_s = knots_s[order]
    knots = np.log2(np.concatenate([f0[f0 > 0], f0[stretches[:, 0]], f0[stretches[:, 1] - 1]])[order])
    done, cycles = 0, 0.0
    for block in music:
        if len(stretches) == 0 or len(block) == 0:
            yield block * np.float64(music_gain)
            continue
        seconds = np.arange(done, done + len(block)) / sample_rate_hz
        done += len(block)
        frequency = np.exp2(np.interp(seconds, knots_s, knots)) / sample_rate_hz
        # Summed one after the other from the first sample on, so the cut into blocks leaves no trace.
        phase = np.cumsum(np.concatenate([[cycles], frequency]))[1:]
        cycles = float(phase[-1])
        stretch = np.maximum(np.searchsorted(starts, seconds, side="right") - 1, 0)
        inside = np.clip(np.minimum(seconds - starts[stretch], ends[stretch] - seconds) / _FADE_S, 0, 1)
        yield music_gain * block + tone_level * inside * inside * (3 - 2 * inside) * _voice(phase, frequency)


def _voice(phase: Floats, frequency: Floats) -> Floats:
    """The harmonics at a phase in cycles; `frequency` in cycles a sample."""
    sine, double_cosine = np.sin(2 * np.pi * phase), 2 * np.cos(2 * np.pi * phase)
    before, harmonic, total = np.zeros_like(sine), sine, np.zeros_like(sine)
    for number, amplitude in enumerate(_HARMONICS, start=1):
        total += amplitude * np.clip((0.5 - number * frequency) / 0.05, 0, 1) * harmonic
        before, harmonic = harmonic, double_cosine * harmonic - before
    return total / sum(_HARMONICS)


def write_sonification(
    out: Path,
    audio_path: Path,
    times_s: ArrayLike,
    f0_hz: ArrayLike,
    *,
    mix: audio.Mix = "mean",
    music_level: float = 0.4,
    tone_level: float = 0.4,
) -> None:
    """Write a 16-bit mono WAV, at the sampling rate of the music, of the contour over its music: to be listened to.

    The music, mixed down by `mix`, is scaled to a peak of `music_level` (a peak below 0.001 of full scale counts as
    silence and is not raised), the contour to at most `tone_level`; both together stay below full scale, so nothing
    clips. The music is read twice, a block at a time: once for its peak. As long as the music; a longer contour is cut.
    ValueError where the music can't be read, or the levels are below 0 or together above 1.
    """
    if not (music_level >= 0 and tone_level >= 0 and music_level + tone_level <= 1):
        raise ValueError(
            f"music_level={music_level}, tone_level={tone_level}; expected 0 or more and at most 1 together"
        )
    import soundfile

    rate = audio.length(audio_path).sample_rate_hz
    peak = max((float(np.abs(block).max()) for block in audio.blocks(audio_path, rate, mix)), default=0.0)
    gain = music_level / max(peak, 1e-3)
    music = audio.blocks(audio_path, rate, mix)
    with (
        written_whole(out) as aside,
        soundfile.SoundFile(aside, "w", rate, channels=1, format="WAV", subtype="PCM_16") as file,
    ):
        for block in sonified(music, rate, times_s, f0_hz, music_gain=gain, tone_level=tone_level):
            file.write(block)


def _even_contour(times_s: ArrayLike, f0_hz: ArrayLike) -> tuple[Floats, Floats, float]:
    """Times, pitches and the step between frames in s, 0 of fewer than two; ValueError where they make no contour."""
    times, f0 = np.asarray(times_s, np.float64), np.asarray(f0_hz, np.float64)
    if times.ndim != 1 or times.shape != f0.shape:
        raise ValueError(f"times_s has shape {times.shape} and f0_hz {f0.shape}; expected one shape (frames,)")
    wrong = np.flatnonzero(~(np.isfinite(times) & np.isfinite(f0) & (f0 >= 0)))
    if len(wrong) > 0:
        i = wrong[0]
        raise ValueError(f"frame {i} is {f0[i]} Hz at {times[i]} s; expected finite numbers, and 0 Hz where unvoiced")
    if len(times) < 2:
        return times, f0, 0.0
    hop_s = float(times[-1] - times[0]) / (len(times) - 1)
    steps = np.diff(times)
    uneven = np.flatnonzero(~((steps > 0) & (np.abs(steps - hop_s) <= 0.05 * hop_s)))
    if len(uneven) > 0:
        i = uneven[0]
        raise ValueError(
            f"times_s[{i}] = {times[i]} and times_s[{i + 1}] = {times[i + 1]}, but the steps are {hop_s:.6g} s on "
            "average; expected equal steps: put the contour on a grid with mmray.features.contour.to_grid"
        )
    return times, f0, hop_s


def _stretches(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The maximal runs of True as rows (first, last + 1), int64 (N, 2)."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return edges.reshape(-1, 2)


def _note_bounds(cents: Floats, split_cents: float, min_note: float, min_frames: int) -> NDArray[np.int64]:
    """Where the notes of a voiced stretch begin and end, rising, from 0 to its length; `min_note` in frames."""
    levels = _levels(cents, split_cents, split_cents * min_note)
    bounds = np.concatenate([[0], 1 + np.flatnonzero(np.diff(levels)), [len(cents)]]).astype(np.int64)
    held = np.flatnonzero([_run_cents(cents[a:b]) <= _GLIDE_CENTS for a, b in itertools.pairwise(bounds)])
    if len(held) > 0:
        middles = (bounds[held[:-1] + 1] + bounds[held[1:]]) // 2
        bounds = np.concatenate([[0], middles, [len(cents)]])
    pitches = np.array([np.median(cents[a:b]) for a, b in itertools.pairwise(bounds)])
    while len(bounds) > 2:  # remove one bound after the other: between notes too near in pitch, then of notes too short
        jumps, lengths = np.abs(np.diff(pitches)), np.diff(bounds)
        if jumps.min() < split_cents:
            joined = int(jumps.argmin())
        elif lengths.min() < min_frames:
            short = int(lengths.argmin())
            joined = short - 1 if short == len(jumps) or (short > 0 and jumps[short - 1] <= jumps[short]) else short
        else:
            break
        bounds, pitches = np.delete(bounds, joined + 1), np.delete(pitches, joined + 1)
        pitches[joined] = np.median(cents[bounds[joined] : bounds[joined + 1]])
    return bounds


def _run_cents(cents: Floats) -> float:
    """How far a level's pitch runs one way: the whole range of a glide, little in a vibrato or where most of it stays.

    The lesser of what the straight line of best fit rises or falls, and twice the range of the middle half.
    """
    offsets = np.arange(len(cents)) - (len(cents) - 1) / 2
    line = abs(float(offsets @ cents)) / max(float(offsets @ offsets), 1.0) * len(cents)
    low, high = np.percentile(cents, [25, 75])
    return min(line, 2 * float(high - low) * len(cents) / max(len(cents) - 1, 1))


def _levels(cents: Floats, split_cents: float, price: float) -> NDArray[np.int64]:
    """Of each frame the number of its level, (T,), on the cheapest path; `price` of a change in cents times frames."""
    grid = np.arange(cents.min(), cents.max() + _LEVEL_CENTS, _LEVEL_CENTS)
    apart = math.ceil(split_cents / _LEVEL_CENTS)
    if len(grid) <= apart:
        return np.zeros(len(cents), np.int64)
    path: NDArray[np.int64] = _cheapest_path(cents, grid, apart, price)
    return path


@compiled
def _cheapest_path(cents: Floats, grid: Floats, apart: int, price: float) -> NDArray[np.int64]:
    """The path through the grid with the least sum of |cents - grid[path]| and `price` per change of `apart` or more.

    The cost of ending at each level is carried from frame to frame; one sweep up and one down find the cheapest origin.
    """
    num_levels = len(grid)
    came_from = np.empty((len(cents), num_levels), np.int16)
    cost, best = np.zeros(num_levels), np.empty(num_levels)
    for t in range(len(cents)):
        for level in range(num_levels):
            best[level] = cost[level]
            came_from[t, level] = level
        origin = 0
        for level in range(apart, num_levels):
            if cost[level - apart] < cost[origin]:
                origin = level - apart
            if cost[origin] + price < best[level]:
                best[level] = cost[origin] + price
                came_from[t, level] = origin
        origin = num_levels - 1
        for level in range(num_levels - 1 - apart, -1, -1):
            if cost[level + apart] < cost[origin]:
                origin = level + apart
            if cost[origin] + price < best[level]:
                best[level] = cost[origin] + price
                came_from[t, level] = origin
        for level in range(num_levels):
            cost[level] = best[level] + abs(cents[t] - grid[level])
    path = np.empty(len(cents), np.int64)
    level = int(cost.argmin())
    for t in range(len(cents) - 1, -1, -1):
        path[t] = level
        level = int(came_from[t, level])
    return path
