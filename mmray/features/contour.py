"""Pitch contours: labels on a model's frame grid and rows, and what a model says of each frame back to pitches in Hz.

A contour is a pitch in Hz per frame, 0 where there is no melody. A model's posteriors have shape (T, F + 1): of each
frame the probabilities of "no melody", row 0, and of F pitches, row r that of `pitches_hz[r - 1]`. These are what
`cfp.Settings.pitches_hz` gives, which are not the frequencies of the feature's rows, but each one row above.

Three ways from posteriors to a contour:

- `decode_argmax`: the most probable row, as the published models are scored.
- `decode_threshold`: the most probable pitch; whether there is a melody by `voicing_scores` against a threshold that
  `fit_threshold` finds on labelled clips. Threshold 0.5 is `decode_argmax`.
- `decode_viterbi`: the most probable path, where changes of pitch and of voicing have a price.

With the published DenseASPP on 25 clips of MIR-1K by five singers it never heard, overall accuracy was 83.9 % by
argmax, 84.8 % by Viterbi with costs chosen on the other four singers, and 83.6 % with thresholds so chosen: its
posteriors are near 0 or 1, so a threshold has little to tell apart, and 20 clips are too few to fit one.

Labels go on the grid by the rules of mir_eval.melody, version 0.8 (`resample`), so that what a model learns is what it
is scored by.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmray.features.native import compiled

Floats = NDArray[np.float64]

_TIME_DECIMALS = 10  # mir_eval rounds times, in seconds, to so many decimals before it compares them


@dataclass(frozen=True)
class Contour:
    """The melody of T frames.

    f0_hz, float64 (T,): pitch, 0 where there is no melody. confidence, float32 (T,): the probability, 0 to 1, that
    there is a melody in the frame, voiced or not: 1 - p(no melody).
    """

    f0_hz: Floats
    confidence: NDArray[np.float32]


def series(times_s: ArrayLike, f0_hz: ArrayLike, name: str) -> tuple[Floats, Floats]:
    """Times and pitches as float64 (N,), as mir_eval reads them: from time 0, where the first pitch already holds.

    ValueError, naming `name`, unless there is an entry, both are finite and of one length, and times rise by more than
    1e-10 s. Times below 0 and pitches below 0 (unvoiced, with a guess of the pitch) may stand.
    """
    times, f0 = np.asarray(times_s, np.float64), np.asarray(f0_hz, np.float64)
    if times.ndim != 1 or times.shape != f0.shape or len(times) == 0:
        raise ValueError(f"{name}: times have shape {times.shape} and pitches {f0.shape}; expected one (N,), N >= 1")
    finite = np.isfinite(times) & np.isfinite(f0)
    if not finite.all():
        i = int(finite.argmin())
        raise ValueError(f"{name}: entry {i} is {f0[i]} Hz at {times[i]} s; expected finite numbers")
    if times[0] > 0:
        times, f0 = np.concatenate([[0.0], times]), np.concatenate([f0[:1], f0])
    rises = np.diff(times.round(_TIME_DECIMALS)) > 0
    if not rises.all():
        i = int(rises.argmin())
        raise ValueError(f"{name}: time {times[i]} s is followed by {times[i + 1]} s; expected times that rise")
    return times, f0


def resample(times_s: Floats, values: Floats, voiced: NDArray[np.bool_], new_times_s: Floats) -> tuple[Floats, Floats]:
    """Values, in Hz or cents, and voicing at new times: `(values, voiced)`, float64 (M,), voiced 0 or 1.

    The rules of mir_eval.melody.resample_melody_series. Times that are all but the same (to 1e-5 of them) are left as
    they are. Else a value between two entries is interpolated linearly where both have one; where the earlier one is 0
    it is 0, and where only the later one is 0 it is the earlier one's. Voicing is that of the entry before. Past the
    last entry value and voicing hold, but for the last of the new times, where they are 0.
    ValueError if a new time is before the first.
    """
    if times_s.shape == new_times_s.shape and bool(
        (np.abs(times_s - new_times_s) <= 1e-8 + 1e-5 * np.abs(new_times_s)).all()
    ):
        return values, voiced.astype(np.float64)
    times, new_times = times_s.round(_TIME_DECIMALS), new_times_s.round(_TIME_DECIMALS)
    if len(new_times) and new_times.min() < times[0]:
        raise ValueError(f"a pitch is asked for at {new_times.min()} s, before the first known, at {times[0]} s")
    if len(new_times) and new_times.max() > times[-1]:
        times = np.append(times, new_times.max())
        values, voiced = np.append(values, 0.0), np.append(voiced, False)
    last = np.arange(len(values))
    last[1:][values[1:] == 0] = 0
    held = values[np.maximum.accumulate(last)]  # 0 becomes the last value before it
    before = np.searchsorted(times, new_times, side="right") - 1
    return np.interp(new_times, times, held) * (values[before] != 0), voiced[before].astype(np.float64)


def to_grid(times_s: ArrayLike, f0_hz: ArrayLike, grid_s: ArrayLike) -> Floats:
    """A label at the times of a grid, rising, in seconds: float64 (T,) Hz, 0 where it is unvoiced.

    `times_s`, `f0_hz`: (N,), see `series`; a pitch of 0 or less is unvoiced. How it is interpolated: see `resample`.
    """
    times, f0 = series(times_s, f0_hz, "the label")
    pitch, voiced = resample(times, np.abs(f0), f0 > 0, np.asarray(grid_s, np.float64))
    return pitch * voiced


def nearest_bins(f0_hz: ArrayLike, pitches_hz: ArrayLike) -> NDArray[np.int64]:
    """Target rows of a contour in Hz, (T,): 0 for 0 or less, no melody; else 1 + index of the pitch nearest in cents.

    Beyond `pitches_hz` the first or last of them is taken: somebody sings, and no row comes nearer.
    `pitches_hz`: (F,), rising, above 0; ValueError otherwise.
    """
    f0, pitches = np.asarray(f0_hz, np.float64), _pitches(pitches_hz)
    edges = np.sqrt(pitches[:-1] * pitches[1:])  # half way in cents
    return np.where(f0 > 0, 1 + np.searchsorted(edges, f0), 0).astype(np.int64)


def decode_argmax(posteriors: ArrayLike, pitches_hz: ArrayLike) -> Contour:
    """The contour of the most probable row of each frame of posteriors (T, F + 1); row 0 is unvoiced."""
    p, pitches = _checked(posteriors, pitches_hz)
    return _contour(p, pitches, p.argmax(axis=1))


def voicing_scores(posteriors: ArrayLike) -> Floats:
    """How sure posteriors (T, F + 1) are of a melody: q / (q + p(no melody)), q that of the best pitch; (T,), 0 to 1.

    Above 0.5 where a pitch is more probable than no melody. 0.5 where both are 0.
    """
    p = np.asarray(posteriors)
    silent, best = p[:, 0].astype(np.float64), p[:, 1:].max(axis=1).astype(np.float64)
    total = silent + best
    scores = np.full(len(p), 0.5)
    np.divide(best, total, out=scores, where=total > 0)
    return scores


def decode_threshold(posteriors: ArrayLike, pitches_hz: ArrayLike, threshold: float) -> Contour:
    """The contour of the best pitch of each frame of posteriors (T, F + 1), voiced where `voicing_scores` > threshold.

    0.5 gives `decode_argmax`; `fit_threshold` finds the best one.
    """
    p, pitches = _checked(posteriors, pitches_hz)
    return _contour(p, pitches, np.where(voicing_scores(p) > threshold, 1 + p[:, 1:].argmax(axis=1), 0))


def fit_threshold(clips: Iterable[tuple[ArrayLike, ArrayLike]], pitches_hz: ArrayLike) -> float:
    """The `threshold` of `decode_threshold`, 0 to 1, with the highest overall accuracy: its mean over labelled clips.

    Each clip: posteriors (T, F + 1) and its label on the same frames, Hz (T,), 0 or less unvoiced. Exact: every
    threshold that makes a difference is tried, and 0.5 is kept where none does better. Clips are read one by one, and
    16 bytes a frame are kept. ValueError without a frame.
    """
    all_scores, all_gains = [], []
    for posteriors, f0_hz in clips:
        p, pitches = _checked(posteriors, pitches_hz)
        f0 = np.asarray(f0_hz, np.float64)
        if f0.shape != (len(p),):
            raise ValueError(f"the label has shape {f0.shape} and posteriors {p.shape}; expected ({len(p)},)")
        if len(p) == 0:
            continue
        voiced = f0 > 0
        cents = np.abs(1200 * np.log2(np.where(voiced, f0, 1.0) / pitches[p[:, 1:].argmax(axis=1)]))
        # What calling the frame voiced adds to the clip's accuracy: the pitch is right, or silence was.
        gain = np.where(voiced, cents < 50, -1.0) / len(p)
        all_scores.append(voicing_scores(p))
        all_gains.append(gain)
    if not all_scores:
        raise ValueError("no frame to fit a threshold on; give labelled clips")
    # 0 and 0.5 are thresholds to be tried, too: entries that gain nothing.
    scores, where = np.unique(np.concatenate([[0.0, 0.5], *all_scores]), return_inverse=True)
    gains = np.bincount(where, np.concatenate([[0.0, 0.0], *all_gains]))
    totals = np.append(np.cumsum(gains[:0:-1])[::-1], 0.0)  # of the frames with a score above scores[i]
    best = int(totals.argmax())
    return float(scores[best]) if totals[best] > totals[np.searchsorted(scores, 0.5)] else 0.5


def decode_viterbi(
    posteriors: ArrayLike,
    pitches_hz: ArrayLike,
    semitone_cost: float = 2.0,
    leap_cost: float = 16.0,
    switch_cost: float = 16.0,
) -> Contour:
    """The contour of the path through posteriors (T, F + 1) with the highest sum of log posteriors less its costs.

    Costs, in nats, 0 or more, inf to forbid: from one frame to the next a change of pitch costs `semitone_cost` a
    semitone, but at most `leap_cost`, which a leap to any pitch costs; and `switch_cost` lies between "no melody" and
    any pitch. All 0 gives `decode_argmax`. The defaults suit posteriors as sure of themselves as those of the published
    DenseASPP; the less sure a model is, the smaller they should be.
    Exact, in time T * F whatever the costs: a cost by distance is carried from row to row, up and then down.
    """
    p, pitches = _checked(posteriors, pitches_hz)
    costs = {"semitone_cost": semitone_cost, "leap_cost": leap_cost, "switch_cost": switch_cost}
    for name, cost in costs.items():
        if not cost >= 0:
            raise ValueError(f"{name}={cost}; expected 0 or more")
    if len(p) == 0:
        return _contour(p, pitches, np.zeros(0, np.int64))
    log_p = np.log(np.maximum(p, np.finfo(np.float32).tiny, dtype=np.float32))
    # Minus infinity less itself would be NaN; a finite cost beyond any sum of log posteriors forbids as well.
    prohibitive = 100.0 * (len(p) + 1)
    steps = np.minimum(12 * np.diff(np.log2(pitches)) * semitone_cost, prohibitive)
    return _contour(p, pitches, _best_path(log_p, steps, min(leap_cost, prohibitive), min(switch_cost, prohibitive)))


def _contour(p: NDArray[np.floating], pitches: Floats, rows: NDArray[np.integer]) -> Contour:
    return Contour(np.append(0.0, pitches)[rows], (1 - p[:, 0]).astype(np.float32))


def _pitches(pitches_hz: ArrayLike) -> Floats:
    pitches = np.asarray(pitches_hz, np.float64)
    if pitches.ndim != 1 or len(pitches) == 0 or not pitches[0] > 0 or not (np.diff(pitches) > 0).all():
        raise ValueError(f"pitches_hz is {pitches}; expected (F,) pitches above 0 that rise")
    return pitches


def _checked(posteriors: ArrayLike, pitches_hz: ArrayLike) -> tuple[NDArray[np.floating], Floats]:
    p, pitches = np.asarray(posteriors), _pitches(pitches_hz)
    if p.ndim != 2 or p.shape[1] != len(pitches) + 1:
        raise ValueError(
            f"posteriors have shape {p.shape}; expected (frames, {len(pitches) + 1}): no melody and F pitches"
        )
    if np.isnan(p[:, 0]).any():  # a softmax spreads a NaN over its whole frame
        raise ValueError(f"posteriors of frame {np.isnan(p[:, 0]).argmax()} are NaN; the model has diverged")
    return p, pitches


@compiled
def _best_path(log_p: NDArray[np.float32], steps: Floats, leap_cost: float, switch_cost: float) -> NDArray[np.int64]:
    """The best row of each frame; `steps` (F - 1,) are the costs between neighbouring pitches. At least one frame."""
    num_frames, num_rows = log_p.shape
    came_from = np.empty((num_frames, num_rows), np.int32)
    score = log_p[0].astype(np.float64)  # of the best path that ends in the row
    reached = np.empty(num_rows, np.float64)
    for t in range(1, num_frames):
        top = 1 + score[1:].argmax()
        silent, silent_from = score[0], 0
        if score[top] - switch_cost > silent:
            silent, silent_from = score[top] - switch_cost, top
        entry, entry_from = score[top] - leap_cost, top  # the best way into any pitch
        if score[0] - switch_cost > entry:
            entry, entry_from = score[0] - switch_cost, 0
        carried, carried_from = score[1], 1
        for r in range(1, num_rows):  # from below or from the row itself
            if r > 1:
                carried -= steps[r - 2]
            if score[r] >= carried:
                carried, carried_from = score[r], r
            reached[r], came_from[t, r] = carried, carried_from
        for r in range(num_rows - 1, 0, -1):  # or from above, or from anywhere
            if r < num_rows - 1:
                carried -= steps[r - 1]
            if reached[r] >= carried:
                carried, carried_from = reached[r], came_from[t, r]
            best, best_from = carried, carried_from
            if entry > best:
                best, best_from = entry, entry_from
            score[r], came_from[t, r] = best + log_p[t, r], best_from
        score[0], came_from[t, 0] = silent + log_p[t, 0], silent_from
    path = np.empty(num_frames, np.int64)
    path[-1] = score.argmax()
    for t in range(num_frames - 1, 0, -1):
        path[t - 1] = came_from[t, path[t]]
    return path
