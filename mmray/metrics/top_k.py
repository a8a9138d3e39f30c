"""The k highest scores of every row, exactly and deterministically.

Convention: scores fall from left to right; where scores are equal the lower class comes first, also at the cut. -0.0
equals 0.0. Scores are kept bit for bit.

Method, for k up to 64: let lane j be the classes j, j + 256, j + 512, …, and fold the maxima of the 256 lanes into 64.
These are scores of 64 different classes, so the k-th largest of them is a lower bound of the k-th largest of the row.
One pass at memory speed gives the maxima; only the lanes whose maximum reaches the bound are looked at again, and of
their scores only those that reach it, usually little more than k, are sorted by insertion. Lanes stride over the
classes, so it does no harm that corpora number their classes by frequency and high scores gather at low indices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_LANES = 256  # power-of-two multiple of _FOLDED
_FOLDED = 64
_ROWS_AT_ONCE = 128  # converted to float32 together: a few MB at thousands of classes, so they stay in the cache


def top_k(scores: NDArray[np.floating] | torch.Tensor, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The min(k, C) classes of highest score in each row, and their scores.

    `scores`, shape (B, C): float32, float16 or (torch) bfloat16, of any strides, so rows may be broadcast. Infinite
    scores are in order; NaN raises ValueError naming row and class, as does a type that float32 can't hold exactly.

    Returns classes and scores, both (B, min(k, C)), best first; among equal scores the lower class first.
    """
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; expected (videos, classes), one class or more")
    if k < 1:
        raise ValueError(f"k={k}; expected 1 or more")
    num_rows, num_classes = scores.shape
    k = min(k, num_classes)
    classes = np.empty((num_rows, k), np.int32)
    top = np.empty((num_rows, k), np.float32)
    for start in range(0, num_rows, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, num_rows)
        rows = float32_rows(scores[start:stop])
        if k <= _FOLDED:
            nan_row = _select(rows, classes[start:stop], top[start:stop])
        else:
            classes[start:stop] = np.argsort(-rows, axis=1, kind="stable")[:, :k]
            top[start:stop] = np.take_along_axis(rows, classes[start:stop], axis=1)
            nan_row = int(np.argmax(np.append(np.isnan(rows).any(axis=1), True)))
            nan_row = -1 if nan_row == len(rows) else nan_row
        if nan_row >= 0:
            nan_class = int(np.flatnonzero(np.isnan(rows[nan_row]))[0])
            raise ValueError(f"scores[{start + nan_row}, {nan_class}] (row, class) is NaN; a rank needs numbers")
    return classes, top


def float32_rows(scores: NDArray[np.floating] | torch.Tensor) -> NDArray[np.float32]:
    """These scores as a C-contiguous float32 array, without a copy where they are one; ValueError if that rounds."""
    if str(scores.dtype).removeprefix("torch.") not in ("float32", "float16", "bfloat16"):
        raise ValueError(
            f"scores are {scores.dtype}; expected float32, float16 or bfloat16: converting a wider type rounds, which "
            "makes ties, so do that yourself if you mean it"
        )
    array = scores if isinstance(scores, np.ndarray) else scores.detach().float().cpu().numpy()
    return np.ascontiguousarray(array, dtype=np.float32)


@njit(cache=True, nogil=True)
def _select(scores: NDArray[np.float32], classes_out: NDArray[np.int32], scores_out: NDArray[np.float32]) -> int:
    """Fill both outputs, shape (B, k) with k <= _FOLDED; returns the first row with a NaN, or -1."""
    num_rows, num_classes = scores.shape
    k = classes_out.shape[1]
    num_whole = num_classes // _LANES
    lane_max = np.empty(_LANES, np.float32)
    folded = np.empty(_FOLDED, np.float32)
    num_at_least = np.empty(_FOLDED, np.int32)
    lanes = np.empty(_LANES, np.int32)
    candidate_scores = np.empty(num_classes, np.float32)
    candidate_classes = np.empty(num_classes, np.int32)
    for i in range(num_rows):
        row = scores[i]

        # The maximum of each lane. These inner loops vectorise as they stand: element-wise, no reassociation of
        # floats, and so no fastmath, under which the compiler might drop the test for NaN.
        lane_max[:] = -np.inf
        num_nan = np.int32(0)
        for block in range(num_whole):
            for j in range(_LANES):
                x = row[block * _LANES + j]
                lane_max[j] = x if x > lane_max[j] else lane_max[j]
                num_nan += np.int32(x != x)
        for j in range(num_classes - num_whole * _LANES):
            x = row[num_whole * _LANES + j]
            lane_max[j] = x if x > lane_max[j] else lane_max[j]
            num_nan += np.int32(x != x)
        if num_nan > 0:
            return i

        # The bound: the largest of the folded maxima that at least k of them reach. Counting is branch-free.
        folded[:] = lane_max[:_FOLDED]
        for block in range(1, _LANES // _FOLDED):
            for j in range(_FOLDED):
                x = lane_max[block * _FOLDED + j]
                folded[j] = x if x > folded[j] else folded[j]
        num_at_least[:] = 0
        for other in range(_FOLDED):
            for j in range(_FOLDED):
                num_at_least[j] += np.int32(folded[other] >= folded[j])
        bound = np.float32(-np.inf)
        for j in range(_FOLDED):
            if num_at_least[j] >= k and folded[j] > bound:
                bound = folded[j]

        # The candidates, in the order of the classes. Each is written and then kept by counting it, without a branch.
        num_lanes = 0
        for j in range(min(_LANES, num_classes)):
            lanes[num_lanes] = j
            num_lanes += int(lane_max[j] >= bound)
        num_candidates = 0
        for first in range(0, num_classes, _LANES):
            for j in range(num_lanes):
                c = first + lanes[j]
                if c >= num_classes:
                    break
                candidate_scores[num_candidates] = row[c]
                candidate_classes[num_candidates] = c
                num_candidates += int(row[c] >= bound)

        # Insertion keeps equal scores in the order they came in, and rejects a tie with the last of a full list.
        num_kept = 0
        for j in range(num_candidates):
            x = candidate_scores[j]
            if num_kept < k:
                place = num_kept
                num_kept += 1
            elif x > scores_out[i, k - 1]:
                place = k - 1
            else:
                continue
            while place > 0 and x > scores_out[i, place - 1]:
                scores_out[i, place] = scores_out[i, place - 1]
                classes_out[i, place] = classes_out[i, place - 1]
                place -= 1
            scores_out[i, place] = x
            classes_out[i, place] = candidate_classes[j]
    return -1
