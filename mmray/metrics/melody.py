"""The metrics of melody extraction: voicing recall and false alarm, raw pitch and chroma accuracy, overall accuracy.

Definitions. A clip brings a reference and an estimate, each a series of times in seconds and pitches in Hz. The
estimate is resampled to the N times of the reference. An entry is voiced if its pitch is above 0; a pitch of 0 is
unvoiced, and a pitch below 0 is unvoiced, too, but says which pitch it would be. Pitches are compared in cents,
1200 log2(Hz / 10); a pitch is right if it is less than 50 cents off.

- **Voicing recall** (VR): of the times voiced in the reference, the share voiced in the estimate. 1 if there are none.
- **Voicing false alarm** (VFA): of the times unvoiced in the reference, the share voiced in the estimate. 0 if there
  are none. The less of it, the better.
- **Raw pitch accuracy** (RPA): of the times voiced in the reference, the share where the pitch of the estimate is
  right, be it voiced or a guess below 0. 0 if there are none.
- **Raw chroma accuracy** (RCA): the same, but octaves are folded into one.
- **Overall accuracy** (OA): of all times, the share that is unvoiced in both, or voiced in both with the right pitch.

Over many clips each is the mean of the clips' values, whatever their lengths.

Conventions. They are those of mir_eval.melody, version 0.8, and `clip_scores` gives the very numbers of its `evaluate`.

- A series that starts after 0 s holds its first pitch from 0 s on, which adds a time to the reference.
- How the estimate is resampled, in cents: `mmray.features.contour.resample`. Among it: an estimate that ends before the
  reference holds its last pitch to the end.
- A pitch of 10 Hz is 0 cents and counts as none for RPA, RCA and OA.

Stricter than mir_eval: ValueError for numbers that aren't finite, for times that don't rise, and for no entries at all.

Sources: G. E. Poliner et al., "Melody Transcription from Music Audio: Approaches and Evaluation", IEEE Transactions on
Audio, Speech, and Language Processing 15(4), 2007. J. Salamon et al., "Melody Extraction from Polyphonic Music Signals:
Approaches, Applications and Challenges", IEEE Signal Processing Magazine 31(2), 2014. C. Raffel et al., "mir_eval: A
Transparent Implementation of Common MIR Metrics", ISMIR 2014.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmray.features.contour import Floats, resample, series

METRICS = (
    "overall_accuracy",
    "raw_pitch_accuracy",
    "raw_chroma_accuracy",
    "voicing_recall",
    "voicing_false_alarm",
)
"""The names of the metrics, the most telling first."""

_TOLERANCE_CENTS = 50

Scorer = Callable[[ArrayLike, ArrayLike, ArrayLike, ArrayLike], dict[str, float]]


def clip_scores(
    ref_times_s: ArrayLike, ref_f0_hz: ArrayLike, est_times_s: ArrayLike, est_f0_hz: ArrayLike
) -> dict[str, float]:
    """The five `METRICS` of one clip, fractions from 0 to 1: the numbers of `mir_eval_scores`, sooner.

    Reference (N,) and estimate (M,), of any hops: times in seconds, rising, and pitches in Hz, 0 or less unvoiced.
    ValueError without an entry, for numbers that aren't finite, times that don't rise, and an estimate that starts
    after the reference (which takes times below 0).
    """
    ref_times, ref_f0 = series(ref_times_s, ref_f0_hz, "the reference")
    est_times, est_f0 = series(est_times_s, est_f0_hz, "the estimate")
    ref_cents, ref_voiced = _cents(ref_f0), ref_f0 > 0
    est_cents, voicing = resample(est_times, _cents(est_f0), est_f0 > 0, ref_times)
    est_voiced = voicing > 0

    num_voiced = _count(ref_voiced)
    num_unvoiced = len(ref_voiced) - num_voiced
    num_recalled = _count(est_voiced & ref_voiced)
    num_false_alarms = _count(est_voiced) - num_recalled
    off_cents = np.abs(ref_cents - est_cents)
    comparable = ref_voiced & (ref_cents != 0) & (est_cents != 0)
    right = comparable & (off_cents < _TOLERANCE_CENTS)
    octaves_cents = 1200.0 * np.floor(off_cents / 1200 + 0.5)
    right_chroma = comparable & (np.abs(off_cents - octaves_cents) < _TOLERANCE_CENTS)
    num_right = _count(right & est_voiced) + num_unvoiced - num_false_alarms
    return {
        "overall_accuracy": num_right / len(ref_voiced),
        "raw_pitch_accuracy": _count(right) / max(num_voiced, 1),
        "raw_chroma_accuracy": _count(right_chroma) / max(num_voiced, 1),
        "voicing_recall": num_recalled / num_voiced if num_voiced else 1.0,
        "voicing_false_alarm": num_false_alarms / max(num_unvoiced, 1),
    }


def mir_eval_scores(
    ref_times_s: ArrayLike, ref_f0_hz: ArrayLike, est_times_s: ArrayLike, est_f0_hz: ArrayLike
) -> dict[str, float]:
    """The five `METRICS` of one clip as mir_eval.melody.evaluate computes them, without its warnings.

    Arguments and ValueError: see `clip_scores`.
    """
    import mir_eval.melody  # takes half a second, and only an evaluation needs it

    ref = series(ref_times_s, ref_f0_hz, "the reference")
    est = series(est_times_s, est_f0_hz, "the estimate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # uneven times and unvoiced clips are no mistakes
        scores = mir_eval.melody.evaluate(*ref, *est)
    return {name: float(scores[name.replace("_", " ").title()]) for name in METRICS}


def mean_scores(clips: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each of the `METRICS` over clips, the same number in whatever order they come; ValueError if none."""
    if not clips:
        raise ValueError("no clips were scored; melody metrics are means over clips with a label")
    return {name: math.fsum(clip[name] for clip in clips) / len(clips) for name in METRICS}


class MelodyMetrics:
    """Scores clips one by one and computes the mean of each metric over all of them.

    Parts scored apart are joined by `merge`, in any order, with the very result of one pass. An `update` or `merge`
    that raises leaves the accumulator as it was.
    """

    def __init__(self, score: Scorer = clip_scores) -> None:
        """`score`: `clip_scores`, or `mir_eval_scores` for the same numbers from the community's own code."""
        self._score = score
        self._by_id: dict[str, dict[str, float]] = {}

    def update(
        self,
        id: str,
        ref_times_s: ArrayLike,
        ref_f0_hz: ArrayLike,
        est_times_s: ArrayLike,
        est_f0_hz: ArrayLike,
    ) -> None:
        """Add a clip; ValueError, naming it, if it has no label, was added before, or can't be scored."""
        if np.size(ref_times_s) == 0:
            raise ValueError(f"clip {id!r} has no label; only clips with a label can be scored")
        try:
            scores = self._score(ref_times_s, ref_f0_hz, est_times_s, est_f0_hz)
        except ValueError as error:
            raise ValueError(f"clip {id!r}: {error}") from error
        self._add({id: scores})

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as plain arrays: `ids`, strings (N,), and `scores`, float64 (N, 5), in the order of `METRICS`."""
        return {
            "ids": np.array(list(self._by_id), np.str_),
            "scores": np.array([[clip[m] for m in METRICS] for clip in self._by_id.values()]).reshape(-1, len(METRICS)),
        }

    def merge(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add the clips of another's `state()`; ValueError if one of them is here already."""
        rows = zip(state["ids"].tolist(), state["scores"].tolist(), strict=True)
        self._add({id: dict(zip(METRICS, scores, strict=True)) for id, scores in rows})

    def compute(self) -> dict[str, float]:
        """The mean of each of the `METRICS` over clips, 0 to 1, overall accuracy first; ValueError without clips."""
        return mean_scores(list(self._by_id.values()))

    def per_clip(self) -> list[dict[str, Any]]:
        """Of each clip its `id` and the five `METRICS`, sorted by id."""
        return [{"id": id, **self._by_id[id]} for id in sorted(self._by_id)]

    def _add(self, clips: dict[str, dict[str, float]]) -> None:
        twice = sorted(clips.keys() & self._by_id.keys())
        if twice:
            raise ValueError(f"clip {twice[0]!r} was scored twice; a mean counts each clip once")
        self._by_id.update(clips)


def _count(which: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(which))


def _cents(f0_hz: Floats) -> Floats:
    """Cents above 10 Hz of the size of each pitch; 0 for 0."""
    cents = np.zeros(len(f0_hz))
    pitched = np.flatnonzero(f0_hz)
    cents[pitched] = 1200.0 * np.log2(np.abs(f0_hz[pitched]) / 10.0)
    return cents
