"""The metrics of the YouTube-8M challenge: GAP, mAP, Hit@1 and PERR of multi-label rankings, exact and mergeable.

Definitions. Each video brings a score for each of C classes and a set of labels, perhaps an empty one. Its predictions
are the k classes of highest score (20 in the challenge); a prediction is a hit if its class is a label.

- **Average precision** of a pool of predictions sorted by falling score: the sum over its hits of (hits down to here) /
  (rank here), divided by the number of positives.
- **GAP**, global average precision: the pool is the predictions of all videos, the positives are all labels of all
  videos, also those outside the top k.
- **AP of a class**: the pool is the predictions of that class that survived the top k of their videos, the positives
  are all its labels. **mAP** is the mean over the classes that are a label anywhere; with `count_empty_classes` the
  mean over all classes, 0 for the others.
- **Hit@1**: the share of all videos whose first prediction is a hit. A video without labels counts, as a miss.
- **PERR**, precision at equal recall rate: for a video with n labels, the share of labels among its n first classes,
  where a class of score 0 or less is no hit; the mean over the videos with labels. If n > k it looks beyond the top k.

Conventions.

- Equal scores in a video: the lower class comes first, also at the cut to k.
- Equal scores in a pool: the expectation over all their orders. A group of m equal scores with h hits that comes after
  r predictions with g hits contributes the sum over j = 1…m of (h / m) · (g + 1 + (j - 1)(h - 1) / (m - 1)) / (r + j):
  a hit stands at place j with probability h / m, and then each of the j - 1 places before it holds one of the h - 1
  other hits among m - 1. So the order of the videos never matters. -0.0 equals 0.0.
- Scores stay the float32 they are; counts are integers, and sums are float64 in an order that only the scores and
  classes determine. So the parts of a data set, merged in any order, give the very number of one pass.
- No labels at all: every metric is 0. No videos at all: ValueError.

Sources: S. Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016 (mAP, Hit@1, PERR);
the YouTube-8M challenges of 2017 and 2018 with their starter kit (GAP at 20). The starter kit shuffles equal scores,
where we take the expectation; it counts empty classes in mAP, and videos without labels in PERR.

Memory: 6 bytes a prediction (8 from 32,769 classes on), so 120 bytes a video at k = 20 whatever the number of classes;
to compute takes another 4 bytes a prediction and 8 a hit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from mmray.metrics.top_k import float32_rows, top_k

if TYPE_CHECKING:
    import torch

# The labels of B videos as rows of different lengths: the classes of all labels, integers (L,), and offsets, integers
# (B + 1,) from 0 to L. Video i has the labels classes[offsets[i]:offsets[i + 1]], each once, in any order.
Labels = tuple[ArrayLike, ArrayLike]

_ROWS_PER_BLOCK = 16_384  # 2 MB at k = 20: storage grows by blocks, so nothing is ever copied to grow


def labels_of_multi_hot(multi_hot: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`Labels` of a multi-hot array, shape (B, C), of zeros and ones of any type; ValueError on another value."""
    array = np.asarray(multi_hot)
    if array.ndim != 2:
        raise ValueError(f"multi_hot has shape {array.shape}; expected (videos, classes)")
    hot = array == 1
    if not (hot | (array == 0)).all():
        row, column = np.argwhere(~hot & (array != 0))[0]
        raise ValueError(f"multi_hot[{row}, {column}] is {array[row, column]}; expected 0 or 1")
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(hot.sum(axis=1), out=offsets[1:])
    return np.nonzero(hot)[1].astype(np.int64), offsets


def label_prior_scores(label_counts: ArrayLike, num_videos: int) -> NDArray[np.float32]:
    """The share of `num_videos` training videos that have each label, float32 (C,): the scores of the prior baseline.

    The baseline predicts them for every video alike: `metrics.update(np.broadcast_to(scores, (B, C)), labels)`.
    `label_counts`, shape (C,): videos per label. ValueError unless 0 <= count <= num_videos for each.
    """
    counts = np.asarray(label_counts)
    if counts.ndim != 1 or num_videos < 1:
        raise ValueError(
            f"label_counts has shape {counts.shape} and num_videos={num_videos}; expected (classes,) and 1 or more"
        )
    wrong = np.flatnonzero(~((counts >= 0) & (counts <= num_videos)))
    if len(wrong) > 0:
        raise ValueError(f"label_counts[{wrong[0]}] is {counts[wrong[0]]}; expected 0 to num_videos={num_videos}")
    return (counts / num_videos).astype(np.float32)


def average_precision(scores: NDArray[np.floating], hits: ArrayLike, num_positives: int) -> float:
    """Average precision of one pool of predictions, in expectation over the orders of equal scores; 0 to 1.

    `scores`, float32 or float16 (N,), without NaN; `hits`, bool (N,). `num_positives` counts the missed ones, too;
    ValueError if it is less than the hits. Without positives the result is 0.
    """
    pool = float32_rows(scores)
    hit = np.asarray(hits, dtype=bool)
    if pool.ndim != 1 or pool.shape != hit.shape:
        raise ValueError(f"scores has shape {pool.shape} and hits {hit.shape}; expected one shape (predictions,)")
    if np.isnan(pool).any():
        raise ValueError(f"scores[{np.flatnonzero(np.isnan(pool))[0]}] is NaN; a rank needs numbers")
    if num_positives < hit.sum():
        raise ValueError(f"num_positives={num_positives} is less than the {hit.sum()} hits")
    return float(_precision_sum(np.sort(pool), np.sort(pool[hit]))) / max(num_positives, 1)


class RankingMetrics:
    """Accumulates the predictions of videos and computes GAP, mAP, Hit@1 and PERR of all of them.

    Parts accumulated apart, in threads, processes or Ray workers, are joined by `merge`, or travel as `state()`. An
    `update` that raises leaves the accumulator as it was.
    """

    def __init__(self, num_classes: int, k: int = 20) -> None:
        """Metrics over the top min(k, num_classes) classes of each video; 20 is the challenge's k."""
        if not 1 <= num_classes < 2**31 or k < 1:
            raise ValueError(f"num_classes={num_classes}, k={k}; expected 1 to 2^31 - 1 classes and k of 1 or more")
        self.num_classes = num_classes
        self.k = min(k, num_classes)
        self.num_videos = 0
        self.num_videos_beyond_k = 0
        # Predictions, best first, in blocks of _ROWS_PER_BLOCK videos: scores, and codes = 2 * class + hit.
        self._scores: list[NDArray[np.float32]] = []
        self._codes: list[NDArray[np.unsignedinteger]] = []
        self._code_dtype = np.uint16 if num_classes <= 2**15 else np.uint32
        self._label_counts = np.zeros(num_classes, np.int64)
        # Indexed by n, a number of labels: the videos that have n, and their hits among the first n classes.
        # Integers, so that PERR = sum(hits[n] / n) / videos is the same number in whatever order they were added.
        self._videos_by_num_labels = np.zeros(num_classes + 1, np.int64)
        self._hits_by_num_labels = np.zeros(num_classes + 1, np.int64)

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """Videos per label so far, shape (C,): the positives of each class."""
        return self._label_counts.copy()

    def update(self, scores: NDArray[np.floating] | torch.Tensor, labels: Labels) -> None:
        """Add B videos with a score for every class, shape (B, C): float32, float16 or bfloat16, numpy or torch.

        Rows may be broadcast. ValueError, naming row and class, on NaN, on a label outside [0, C) or one given twice.
        """
        if scores.ndim != 2 or scores.shape[1] != self.num_classes:
            raise ValueError(f"scores has shape {tuple(scores.shape)}; expected (videos, {self.num_classes})")
        label_classes, offsets = _validated_labels(labels, scores.shape[0], self.num_classes)
        classes, top_scores = top_k(scores, self.k)
        codes, hits = self._mark_hits(classes, top_scores, label_classes, offsets)
        for i in np.flatnonzero(np.diff(offsets) > self.k):
            hits[i] = _hits_among_first(float32_rows(scores[i]), label_classes[offsets[i] : offsets[i + 1]])
        self._append(top_scores, codes)
        self._count(label_classes, offsets, hits)

    def update_top_k(self, classes: NDArray[np.integer], scores: NDArray[np.floating], labels: Labels) -> None:
        """Add B videos by their w >= k best predictions: `classes` and `scores`, both (B, w), each row in any order.

        Rows may be broadcast. Those beyond k serve PERR alone. A video with more labels than w has no exact PERR, as
        its further classes are gone: such videos are counted in `num_videos_beyond_k`, and once there is one, `compute`
        leaves out `perr`.
        ValueError, naming row and class, on NaN, on a class or label outside [0, C) or one given twice.
        """
        label_classes, offsets = _validated_labels(labels, len(scores), self.num_classes)
        classes, top_scores = self._validated_predictions(classes, scores)
        _sort_rows(classes, top_scores)
        codes, hits = self._mark_hits(classes, top_scores, label_classes, offsets)
        self._append(top_scores[:, : self.k], codes[:, : self.k])
        self._count(label_classes, offsets, hits)
        self.num_videos_beyond_k += int(np.count_nonzero(np.diff(offsets) > classes.shape[1]))

    def merge(self, other: RankingMetrics) -> None:
        """Add the videos of `other`, which stays as it is; ValueError if its classes or k differ."""
        if (other.num_classes, other.k) != (self.num_classes, self.k):
            raise ValueError(
                f"can't merge metrics of num_classes={other.num_classes}, k={other.k} "
                f"into num_classes={self.num_classes}, k={self.k}"
            )
        for scores, codes in list(other._blocks()):
            self._append(scores, codes)
        self.num_videos_beyond_k += other.num_videos_beyond_k
        self._label_counts += other._label_counts
        self._videos_by_num_labels += other._videos_by_num_labels
        self._hits_by_num_labels += other._hits_by_num_labels

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as plain arrays, to be saved or sent; `from_state` is the way back."""
        blocks = list(self._blocks())
        return {
            "num_classes": np.array(self.num_classes),
            "k": np.array(self.k),
            "num_videos_beyond_k": np.array(self.num_videos_beyond_k),
            "scores": np.concatenate([np.empty((0, self.k), np.float32), *(scores for scores, _ in blocks)]),
            "codes": np.concatenate([np.empty((0, self.k), self._code_dtype), *(codes for _, codes in blocks)]),
            "label_counts": self._label_counts.copy(),
            "videos_by_num_labels": self._videos_by_num_labels.copy(),
            "hits_by_num_labels": self._hits_by_num_labels.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> RankingMetrics:
        """The accumulator whose `state()` this is."""
        metrics = cls(int(state["num_classes"]), int(state["k"]))
        metrics._append(state["scores"], state["codes"])
        metrics.num_videos_beyond_k = int(state["num_videos_beyond_k"])
        metrics._label_counts += state["label_counts"]
        metrics._videos_by_num_labels += state["videos_by_num_labels"]
        metrics._hits_by_num_labels += state["hits_by_num_labels"]
        return metrics

    def compute(self, count_empty_classes: bool = False) -> dict[str, float]:
        """`gap`, `map`, `hit_at_1` and `perr`, each 0 to 1; ValueError without videos.

        `perr` is absent if `num_videos_beyond_k` isn't 0 (see `update_top_k`). With `count_empty_classes`, mAP is the
        mean over all classes, 0 for those without labels.
        """
        metrics = {
            "gap": self.gap(),
            "map": self.mean_average_precision(count_empty_classes),
            "hit_at_1": self.hit_at_1(),
        }
        if self.num_videos_beyond_k == 0:
            metrics["perr"] = self.perr()
        return metrics

    def gap(self) -> float:
        """Global average precision at k; ValueError without videos."""
        self._require_videos()
        pool = np.concatenate([scores.ravel() for scores, _ in self._blocks()])
        hits = np.concatenate([scores[(codes & 1).astype(bool)] for scores, codes in self._blocks()])
        pool.sort()
        hits.sort()
        return float(_precision_sum(pool, hits)) / max(int(self._label_counts.sum()), 1)

    def mean_average_precision(self, count_empty_classes: bool = False) -> float:
        """Mean of `per_class_ap` over the classes with labels, or over all with 0 for the others."""
        ap = self.per_class_ap()
        num_classes = self.num_classes if count_empty_classes else int(np.count_nonzero(self._label_counts))
        return float(np.nansum(ap)) / max(num_classes, 1)

    def per_class_ap(self) -> NDArray[np.float64]:
        """Average precision of each class, shape (C,); NaN where `label_counts` is 0. ValueError without videos."""
        self._require_videos()
        num_predicted = np.zeros(self.num_classes, np.int64)
        num_hits = np.zeros(self.num_classes, np.int64)
        for _, codes in self._blocks():
            _count_by_class(codes, num_predicted, num_hits)
        # The scores of class c will stand in pool[pool_ends[c] - num_predicted[c] : pool_ends[c]], its hits likewise.
        pool_ends, hit_ends = np.cumsum(num_predicted), np.cumsum(num_hits)
        pool, hits = np.empty(pool_ends[-1], np.float32), np.empty(hit_ends[-1], np.float32)
        pool_next, hit_next = pool_ends - num_predicted, hit_ends - num_hits
        for scores, codes in self._blocks():
            _scatter_by_class(scores, codes, pool_next, hit_next, pool, hits)

        ap = np.where(self._label_counts > 0, 0.0, np.nan)
        for c in np.flatnonzero(num_hits):
            class_pool = pool[pool_ends[c] - num_predicted[c] : pool_ends[c]]
            class_hits = hits[hit_ends[c] - num_hits[c] : hit_ends[c]]
            class_pool.sort()
            class_hits.sort()
            ap[c] = _precision_sum(class_pool, class_hits) / self._label_counts[c]
        return ap

    def hit_at_1(self) -> float:
        """Share of all videos whose first prediction is a label; ValueError without videos."""
        self._require_videos()
        return sum(int(np.count_nonzero(codes[:, 0] & 1)) for _, codes in self._blocks()) / self.num_videos

    def perr(self) -> float:
        """Precision at equal recall rate; ValueError without videos, or if it needs classes that weren't stored."""
        self._require_videos()
        if self.num_videos_beyond_k > 0:
            raise ValueError(
                f"{self.num_videos_beyond_k} videos have more labels than the k={self.k} predictions stored of each, "
                "so PERR is unknown; store more of them (predict.top_k), or use update() with the scores of all classes"
            )
        shares = self._hits_by_num_labels[1:] / np.arange(1, self.num_classes + 1)
        return float(shares.sum()) / max(int(self._videos_by_num_labels[1:].sum()), 1)

    def _require_videos(self) -> None:
        if self.num_videos == 0:
            raise ValueError("no videos were added, so no metric is defined; is the split empty?")

    def _blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.unsignedinteger]]]:
        """The scores and codes of all videos, block by block, (rows, k) each."""
        for block, start in enumerate(range(0, self.num_videos, _ROWS_PER_BLOCK)):
            num_rows = min(_ROWS_PER_BLOCK, self.num_videos - start)
            yield self._scores[block][:num_rows], self._codes[block][:num_rows]

    def _append(self, scores: NDArray[np.float32], codes: NDArray[np.unsignedinteger]) -> None:
        """Copy these rows behind those that are stored."""
        while len(scores) > 0:
            block, row = divmod(self.num_videos, _ROWS_PER_BLOCK)
            if row == 0:
                self._scores.append(np.empty((_ROWS_PER_BLOCK, self.k), np.float32))
                self._codes.append(np.empty((_ROWS_PER_BLOCK, self.k), self._code_dtype))
            num_rows = min(_ROWS_PER_BLOCK - row, len(scores))
            self._scores[block][row : row + num_rows] = scores[:num_rows]
            self._codes[block][row : row + num_rows] = codes[:num_rows]
            self.num_videos += num_rows
            scores, codes = scores[num_rows:], codes[num_rows:]

    def _count(self, label_classes: NDArray[np.int64], offsets: NDArray[np.int64], hits: NDArray[np.int64]) -> None:
        num_labels = np.diff(offsets)
        self._label_counts += np.bincount(label_classes, minlength=self.num_classes)
        self._videos_by_num_labels += np.bincount(num_labels, minlength=self.num_classes + 1)
        np.add.at(self._hits_by_num_labels, num_labels, hits)

    def _mark_hits(
        self,
        classes: NDArray[np.int32],
        scores: NDArray[np.float32],
        label_classes: NDArray[np.int64],
        offsets: NDArray[np.int64],
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
        """The codes of sorted predictions, (B, w), and each video's hits for PERR among its first min(n, w), (B,)."""
        codes = np.empty(classes.shape, self._code_dtype)
        hits = np.empty(len(classes), np.int64)
        _mark_hits(classes, scores, label_classes, offsets, self.num_classes, codes, hits)
        return codes, hits

    def _validated_predictions(
        self, classes: NDArray[np.integer], scores: NDArray[np.floating]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Copies of both; ValueError unless each row has k or more different classes and no NaN."""
        if classes.ndim != 2 or classes.shape[1] < self.k or scores.shape != classes.shape:
            raise ValueError(
                f"classes has shape {classes.shape} and scores {scores.shape}; expected (videos, {self.k}) of both: "
                f"the top {self.k} of {self.num_classes} classes, or more of them"
            )
        if classes.dtype.kind not in "iu":
            raise ValueError(f"classes are {classes.dtype}; expected integers")
        outside = (classes < 0) | (classes >= self.num_classes)
        if outside.any():
            row, place = np.argwhere(outside)[0]
            raise ValueError(f"row {row} predicts class {classes[row, place]}; expected 0 to {self.num_classes - 1}")
        if np.isnan(scores).any():
            row, place = np.argwhere(np.isnan(scores))[0]
            raise ValueError(f"row {row} has score NaN for class {classes[row, place]}; a rank needs numbers")
        ordered = np.sort(classes, axis=1)
        twice = ordered[:, 1:] == ordered[:, :-1]
        if twice.any():
            row, place = np.argwhere(twice)[0]
            raise ValueError(f"row {row} predicts class {ordered[row, place]} twice; expected different classes")
        return np.array(classes, dtype=np.int32), np.array(float32_rows(scores))


def _validated_labels(labels: Labels, num_videos: int, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both parts as int64; ValueError unless they give `num_videos` sets of classes."""
    parts = [np.asarray(part) for part in labels]
    if len(parts) != 2 or any(part.ndim != 1 or (part.size > 0 and part.dtype.kind not in "iu") for part in parts):
        listed = ", ".join(f"{part.dtype} {part.shape}" for part in parts)
        raise ValueError(
            f"labels are {listed}; expected integers: classes of shape (labels,), offsets of (videos + 1,)"
        )
    classes, offsets = (np.ascontiguousarray(part, dtype=np.int64) for part in parts)
    if len(offsets) != num_videos + 1:
        raise ValueError(
            f"labels have {len(offsets)} offsets; expected {num_videos + 1}, one more than there are videos"
        )
    if offsets[0] != 0 or offsets[-1] != len(classes) or (np.diff(offsets) < 0).any():
        raise ValueError(
            f"label offsets run from {offsets[0]} to {offsets[-1]}; expected from 0 to the {len(classes)} labels, "
            "never falling (of a slice of an Arrow list array take flatten() and subtract the first offset)"
        )
    wrong = _first_wrong_label(classes, offsets, num_classes)
    if wrong >= 0:
        row = int(np.searchsorted(offsets, wrong, side="right")) - 1
        label = int(classes[wrong])
        if 0 <= label < num_classes:
            raise ValueError(f"row {row} has label {label} twice; expected a set")
        raise ValueError(f"row {row} has label {label}; expected 0 to {num_classes - 1}")
    return classes, offsets


@njit(cache=True, nogil=True)
def _first_wrong_label(classes: NDArray[np.int64], offsets: NDArray[np.int64], num_classes: int) -> int:
    """Index into `classes` of the first that is no class, or the second of its kind in its row; -1 if all are right."""
    last_row = np.full(num_classes, -1, np.int64)
    for i in range(len(offsets) - 1):
        for j in range(offsets[i], offsets[i + 1]):
            c = classes[j]
            if c < 0 or c >= num_classes or last_row[c] == i:
                return j
            last_row[c] = i
    return -1


@njit(cache=True, nogil=True)
def _sort_rows(classes: NDArray[np.int32], scores: NDArray[np.float32]) -> None:
    """Sort each row of both in place: falling score, then rising class. By insertion: they come sorted as a rule."""
    num_rows, k = classes.shape
    for i in range(num_rows):
        for j in range(1, k):
            x, c = scores[i, j], classes[i, j]
            place = j
            while place > 0 and (x > scores[i, place - 1] or (x == scores[i, place - 1] and c < classes[i, place - 1])):
                scores[i, place], classes[i, place] = scores[i, place - 1], classes[i, place - 1]
                place -= 1
            scores[i, place], classes[i, place] = x, c


@njit(cache=True, nogil=True)
def _mark_hits(
    classes: NDArray[np.int32],
    scores: NDArray[np.float32],
    label_classes: NDArray[np.int64],
    offsets: NDArray[np.int64],
    num_classes: int,
    codes_out: NDArray[np.unsignedinteger],
    hits_out: NDArray[np.int64],
) -> None:
    num_rows, width = classes.shape
    last_row = np.full(num_classes, -1, np.int64)  # the last row that has this label
    for i in range(num_rows):
        for j in range(offsets[i], offsets[i + 1]):
            last_row[label_classes[j]] = i
        num_labels = offsets[i + 1] - offsets[i]
        hits_out[i] = 0
        for j in range(width):
            hit = last_row[classes[i, j]] == i
            codes_out[i, j] = 2 * classes[i, j] + hit
            hits_out[i] += hit and j < num_labels and scores[i, j] > 0


@njit(cache=True, nogil=True)
def _hits_among_first(row: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    """How many of the n labels are among the n first classes of the row, shape (C,), with a score above 0."""
    num_hits = 0
    for label in labels:
        score = row[label]
        num_before = np.int32(0)  # counted without branches: few videos need this, but some data have only such videos
        for c in range(label):
            num_before += np.int32(row[c] >= score)
        for c in range(label + 1, len(row)):
            num_before += np.int32(row[c] > score)
        num_hits += int(num_before < len(labels) and score > 0)
    return num_hits


@njit(cache=True, nogil=True)
def _count_by_class(
    codes: NDArray[np.unsignedinteger], num_predicted: NDArray[np.int64], num_hits: NDArray[np.int64]
) -> None:
    for code in codes.ravel():
        num_predicted[code >> 1] += 1
        num_hits[code >> 1] += code & 1


@njit(cache=True, nogil=True)
def _scatter_by_class(
    scores: NDArray[np.float32],
    codes: NDArray[np.unsignedinteger],
    pool_next: NDArray[np.int64],
    hit_next: NDArray[np.int64],
    pool: NDArray[np.float32],
    hits: NDArray[np.float32],
) -> None:
    """Write each score to its class's place in `pool`, and in `hits` if it's one; both places move on."""
    for score, code in zip(scores.ravel(), codes.ravel()):  # noqa: B905 (numba's zip has no strict)
        c = code >> 1
        pool[pool_next[c]] = score
        pool_next[c] += 1
        if code & 1:
            hits[hit_next[c]] = score
            hit_next[c] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def _precision_sum(pool: NDArray[np.float32], hits: NDArray[np.float32]) -> float:
    """The expected sum over the hits of (hits down to here) / rank.

    `pool`: the scores of all predictions; `hits`: those of the hits, which the pool contains. Both sorted, rising.
    """
    total = 0.0
    i, j = len(pool), len(hits)
    while j > 0:
        score = hits[j - 1]
        while pool[i - 1] > score:
            i -= 1
        num_above, hits_above = len(pool) - i, len(hits) - j
        while i > 0 and pool[i - 1] == score:
            i -= 1
        while j > 0 and hits[j - 1] == score:
            j -= 1
        size, num_hits = len(pool) - i - num_above, len(hits) - j - hits_above
        others = (num_hits - 1) / (size - 1) if size > 1 else 0.0  # P(another place of the group is a hit)
        group = 0.0
        for place in range(size):
            group += (hits_above + 1 + place * others) / (num_above + place + 1)
        total += group * num_hits / size
    return total
