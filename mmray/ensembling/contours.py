"""Melodies of several members to one: from their posteriors frame by frame, or the median of their contours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmray.ensembling.inputs import Int64s, Member
from mmray.ensembling.pooling import Scores
from mmray.features.contour import Contour
from mmray.prepared import frames_column, ragged_column

Float64s = npt.NDArray[np.float64]


def frames_of(members: Sequence[Member], tables: Sequence[pa.Table]) -> tuple[list[Scores], Int64s]:
    """Posteriors (frames, F + 1) of each member, and the offsets (clips + 1,) in frames that all share.

    ValueError, naming the clip, where members cut it into other frames, or have other pitches.
    """
    scores: list[Scores] = []
    all_offsets = []
    for member, table in zip(members, tables, strict=True):
        column = member.column("posteriors")
        if column is None:
            raise ValueError(f"{member.folder} has no posteriors; predict again with --set predict.posteriors=true")
        frames, offsets = frames_column(table, column)
        if scores and frames.shape[1] != scores[0].values.shape[1]:
            raise ValueError(
                f"{members[0].folder} has posteriors of {scores[0].values.shape[1] - 1} pitches, {member.folder} of "
                f"{frames.shape[1] - 1}; members must share the bins of dataset.cfp, or be combined by median"
            )
        scores.append(Scores(frames))
        all_offsets.append(offsets)
    return scores, _shared(members, tables, all_offsets)


def median_contours(
    members: Sequence[Member], tables: Sequence[pa.Table], counted: Sequence[float]
) -> tuple[Contour, Int64s]:
    """The median of the members' pitches where more than half of them hear a melody, of all frames one after another.

    The median is over the members that hear one; of an even number it is half way between the middle two in cents. The
    confidence is the mean of theirs. Members whose `counted` is 0 are left out. Returns offsets as `frames_of` does.
    """
    pitches, confidences, all_offsets = [], [], []
    for table, weight in zip(tables, counted, strict=True):
        f0_hz, offsets = ragged_column(table, "est_f0_hz")
        all_offsets.append(offsets)
        if weight != 0:
            pitches.append(f0_hz)
            confidences.append(ragged_column(table, "confidence")[0])
    offsets = _shared(members, tables, all_offsets)
    f0_hz = median_pitch(np.stack(pitches))
    total = np.zeros(len(f0_hz), np.float32)
    for confidence in confidences:
        total += confidence
    return Contour(f0_hz, total / np.float32(len(confidences))), offsets


def median_pitch(f0_hz: Float64s) -> Float64s:
    """Pitches (M, T) in Hz of M members, 0 or less unvoiced, to one of each frame, (T,), 0 without a majority."""
    num_members = len(f0_hz)
    voiced = f0_hz > 0
    num_voiced = voiced.sum(axis=0)
    rising = np.sort(np.where(voiced, f0_hz, np.inf), axis=0)
    frame = np.arange(f0_hz.shape[1])
    low = rising[np.maximum(num_voiced - 1, 0) // 2, frame]
    high = rising[np.minimum(num_voiced // 2, num_members - 1), frame]
    with np.errstate(invalid="ignore"):
        middle = np.where(low == high, low, np.sqrt(low * high))
    return np.where(2 * num_voiced > num_members, middle, 0.0)


def _shared(members: Sequence[Member], tables: Sequence[pa.Table], offsets: Sequence[Int64s]) -> Int64s:
    for member, other in zip(members[1:], offsets[1:], strict=True):
        if not np.array_equal(other, offsets[0]):
            row = int((np.diff(other) != np.diff(offsets[0])).argmax())
            raise ValueError(
                f"clip {tables[0].column('id')[row].as_py()!r} has {np.diff(offsets[0])[row]} frames in "
                f"{members[0].folder} and {np.diff(other)[row]} in {member.folder}; they need one hop"
            )
    return offsets[0]
