"""The metrics of single-label classification: accuracy, precision, recall, F1, calibration, log-loss; intervals.

Definitions. Each row brings a probability for each of K classes and one label; it is predicted the class of highest
probability. TP, a class's true positives, are its rows that were predicted it; its support is the rows labelled it.

- **Weighted accuracy**: the sum of TP over the classes / the number of rows. That is plain accuracy: the recall of
  each class, weighted by its support. So is `weighted_recall`, which is there for those who look for that name.
- **Precision** of a class: TP / rows predicted it. **Recall**: TP / support. **F1**: 2 TP / (rows predicted it +
  support), their harmonic mean. What is divided by nothing is 0.
- **macro_…**: the mean over the classes that occur, as a label or as a prediction, each class counting alike.
  **weighted_…**: the mean over the classes, weighted by support. Macro F1 is the mean of the F1s, not the F1 of means.
- **Top-k accuracy**: the share of rows whose label is among their k classes of highest probability.
- **ECE**, expected calibration error: the rows are put into 15 bins by their highest probability, bin m holding those
  above (m - 1) / 15 up to and with m / 15. The mean over all rows of |accuracy of the row's bin - mean highest
  probability of the row's bin|. 0 is best: of the rows that it is 80 % sure of, a calibrated model gets 80 % right.
- **Log-loss**: the mean over rows of -ln(probability of the label), in nats. A probability of less than 2^-52 counts
  as 2^-52, so one row costs 36 at most.

Conventions. The numbers are those of scikit-learn with its defaults and `zero_division=0`, except:

- Equal probabilities: the lower class comes first, as everywhere in mmray (scikit-learn's top k takes the higher one).
- Stricter: ValueError for probabilities that aren't finite, lie below 0 or don't sum to 1 within 0.01 (what float16
  and bfloat16 round), and for labels that are no class.

Everything is kept as sums of integers, those of probabilities and logarithms in units of 2^-32 (which rounds each by
1.2e-10 at most), so parts merged in any order give the very number of one pass. Memory: 8 K² bytes, whatever the rows.

Sources: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (ECE). B. Efron and R. Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13 (percentile interval). J. Opitz and S. Burst, "Macro F1 and Macro F1",
2019 (why the mean of F1s).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

METRICS = (
    "weighted_accuracy",
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "weighted_precision",
    "weighted_recall",
    "ece",
    "log_loss",
)
"""The names of the metrics, the most telling first. All are fractions from 0 to 1, log-loss aside."""

NUM_BINS = 15
"""Bins of the highest probability, for ECE and `ClassificationMetrics.reliability`."""

_OF_COUNTS = METRICS[:7]  # those that follow from TP, predictions and support
_EDGES = np.arange(1, NUM_BINS) / NUM_BINS
_UNIT = 2.0**-32
_SMALLEST = 2.0**-52
_SUM_TOLERANCE = 0.01
_DRAWS_AT_ONCE = 4_000_000  # 32 MB of int64

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class ClassificationMetrics:
    """Accumulates rows and computes the `METRICS`, those of each class, the confusion matrix and the calibration.

    Parts scored apart are joined by `merge`, in any order, with the very result of one pass. An `update` or `merge`
    that raises leaves the accumulator as it was.
    """

    def __init__(self, num_classes: int) -> None:
        """Of `num_classes` classes, 1 or more; ValueError otherwise."""
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}; expected 1 or more")
        self.num_classes = num_classes
        self._confusion = np.zeros((num_classes, num_classes), np.int64)
        self._ranks = np.zeros(num_classes, np.int64)  # rows by the place of their label, 0 the most probable class
        self._bins = np.zeros((3, NUM_BINS), np.int64)  # rows, right ones, sum of highest probabilities in _UNITs
        self._log_loss = np.zeros(1, np.int64)  # sum in _UNITs

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return int(self._ranks.sum())

    @property
    def confusion(self) -> Ints:
        """Rows by label and prediction, (K, K) [true, predicted]."""
        return self._confusion.copy()

    def update(self, probabilities: ArrayLike, labels: ArrayLike) -> None:
        """Add B rows: probabilities (B, K) of any float type, labels (B,) integers from 0 to K - 1.

        Rows may be broadcast. ValueError, naming the row, for what the module's docstring calls an error.
        """
        p = np.asarray(probabilities)
        if p.ndim != 2 or p.shape[1] != self.num_classes:
            raise ValueError(f"probabilities have shape {p.shape}; expected (rows, {self.num_classes})")
        p = _checked_probabilities(p.astype(np.float64, copy=False))
        true = _checked_classes(labels, len(p), self.num_classes, "labels")
        if len(p) == 0:
            return
        rows = np.arange(len(p))
        predicted = p.argmax(axis=1)
        highest, of_label = p[rows, predicted], p[rows, true]
        before = np.arange(self.num_classes) < true[:, np.newaxis]
        rank = np.where(before, p >= of_label[:, np.newaxis], p > of_label[:, np.newaxis]).sum(axis=1)
        bins = np.searchsorted(_EDGES, highest, side="left")

        np.add.at(self._confusion, (true, predicted), 1)
        np.add.at(self._ranks, rank, 1)
        np.add.at(self._bins[0], bins, 1)
        np.add.at(self._bins[1], bins, (predicted == true).astype(np.int64))
        np.add.at(self._bins[2], bins, _units(np.minimum(highest, 1)))
        self._log_loss += _units(-np.log(np.clip(of_label, _SMALLEST, 1))).sum()

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as int64 arrays, to be saved or sent; `merge` takes it."""
        return {
            "confusion": self._confusion.copy(),
            "ranks": self._ranks.copy(),
            "bins": self._bins.copy(),
            "log_loss": self._log_loss.copy(),
        }

    def merge(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Add the rows of another's `state()`; ValueError if it has another number of classes."""
        if state["confusion"].shape != self._confusion.shape:
            raise ValueError(
                f"can't merge metrics of {len(state['confusion'])} classes into metrics of {self.num_classes}"
            )
        self._confusion += state["confusion"]
        self._ranks += state["ranks"]
        self._bins += state["bins"]
        self._log_loss += state["log_loss"]

    def compute(self) -> dict[str, float]:
        """Each of the `METRICS`, weighted accuracy first; ValueError without rows."""
        self._require_rows()
        scores = _scores(*(of_class[np.newaxis] for of_class in _sums(self._confusion)))
        return {name: float(values[0]) for name, values in scores.items()} | {
            "ece": self._ece(),
            "log_loss": float(self._log_loss[0]) * _UNIT / self.num_rows,
        }

    def per_class(self) -> list[dict[str, Any]]:
        """Of each class its `precision`, `recall` and `f1`, 0 to 1, and its `count` of labelled rows, 0 or more."""
        right, predicted, support = _sums(self._confusion)
        precision, recall, f1 = _precision_recall_f1(right, predicted, support)
        columns = zip(precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), strict=True)
        return [dict(zip(("precision", "recall", "f1", "count"), values, strict=True)) for values in columns]

    def top_k_accuracy(self, k: int) -> float:
        """The share of rows whose label is among the k most probable classes, 1 from k = K on.

        ValueError without rows, and for a k below 1.
        """
        self._require_rows()
        if k < 1:
            raise ValueError(f"k={k}; expected 1 or more")
        return int(self._ranks[:k].sum()) / self.num_rows

    def reliability(self) -> list[dict[str, Any]]:
        """Of each of the `NUM_BINS` bins of ECE that holds a row, rising: what a reliability diagram shows.

        `low` and `high`, its edges; `count`, its rows; `confidence`, the mean of their highest probabilities; and
        `accuracy`, the share of them that is right.
        """
        return [
            {
                "low": place / NUM_BINS,
                "high": (place + 1) / NUM_BINS,
                "count": count,
                "confidence": confidence * _UNIT / count,
                "accuracy": right / count,
            }
            for place, (count, right, confidence) in enumerate(self._bins.T.tolist())
            if count > 0
        ]

    def _ece(self) -> float:
        _, right, confidence = self._bins
        return float(np.abs(right - confidence * _UNIT).sum()) / self.num_rows

    def _require_rows(self) -> None:
        if self.num_rows == 0:
            raise ValueError("no rows were scored; classification metrics are means over rows with a label")


def class_weights(counts: ArrayLike) -> Floats:
    """The weight of each class by inverse frequency, N / (K n_c), float64 (K,): a training loss weighs rows with it.

    `counts`, (K,): training rows per class, N of them in all. The mean weight of a row is 1, and every class weighs
    alike. ValueError for a class without rows.
    """
    array = np.asarray(counts)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"counts have shape {array.shape}; expected (classes,), one class or more")
    wrong = np.flatnonzero(~(array > 0))
    if len(wrong) > 0:
        raise ValueError(
            f"class {wrong[0]} has {array[wrong[0]]} training rows, so it has no weight by inverse frequency; "
            "bring rows of it, leave it out, or train without class weights"
        )
    return np.asarray(array.sum() / (len(array) * array), np.float64)


def bootstrap_interval(
    predicted: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    metric: str,
    num_classes: int,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[float]:
    """The 95 % interval [low, high] of a metric if other groups had been drawn: percentile bootstrap over groups.

    `predicted` and `labels`, (N,) integers from 0 to num_classes - 1; `groups`, (N,), strings or numbers that say
    which rows belong together (a track's segments: they resemble one another, so that drawing rows one by one would
    give an interval far too narrow). Give each row its own group where rows are independent. `metric` is one of the
    `METRICS` except `ece` and `log_loss`, which need more than predictions.

    As many groups as there are, G, are drawn with replacement, `num_resamples` times, each with all its rows; the
    result is the 2.5th and the 97.5th percentile of the metric over the draws, macro means over the classes of the
    draw. It depends on the rows and the seed, not on the order of the rows. It is too narrow where groups are few
    (say 20 or less), and macro means lean low where a class has so few groups that draws lose most of them. One group
    says nothing about others: [0, 1].
    ValueError for arrays that don't fit, another metric, no rows, or no resamples.
    """
    if metric not in _OF_COUNTS:
        raise ValueError(f"metric={metric!r} has no bootstrap interval; choose one of {', '.join(_OF_COUNTS)}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}; expected 1 or more")
    names = np.asarray(groups)
    if names.ndim != 1 or len(names) == 0:
        raise ValueError(f"groups have shape {names.shape}; expected (rows,), one row or more")
    guess = _checked_classes(predicted, len(names), num_classes, "predicted")
    true = _checked_classes(labels, len(names), num_classes, "labels")
    distinct, group = np.unique(names, return_inverse=True)
    num_groups = len(distinct)
    if num_groups == 1:
        return [0.0, 1.0]

    # Rows right, predicted and labelled, by class and group. Sparse: a group has few of many classes.
    right = guess == true
    shape = (num_classes, num_groups)
    sums = [
        csr_array((np.ones(len(of_rows)), (of_rows, of_groups)), shape)
        for of_rows, of_groups in ((true[right], group[right]), (guess, group), (true, group))
    ]
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // max(num_groups, num_classes))
    values = []
    for start in range(0, num_resamples, at_once):
        num = min(at_once, num_resamples - start)
        drawn = rng.integers(num_groups, size=(num, num_groups)) + num_groups * np.arange(num)[:, np.newaxis]
        times = np.bincount(drawn.ravel(), minlength=num * num_groups).reshape(num, num_groups)
        weights = times.T.astype(np.float64)  # sums of whole numbers below 2^53 are exact
        values.append(_scores(*((of_group @ weights).T for of_group in sums))[metric])
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5))
    return [float(low), float(high)]


def _sums(confusion: Ints) -> tuple[Ints, Ints, Ints]:
    """TP, rows predicted it, and support of each class, (K,) each."""
    return np.diagonal(confusion), confusion.sum(axis=0), confusion.sum(axis=1)


def _precision_recall_f1(
    right: NDArray[Any], predicted: NDArray[Any], support: NDArray[Any]
) -> tuple[Floats, Floats, Floats]:
    """Of each class, from the arrays of `_sums` with any leading axes; what is divided by nothing is 0."""
    return (
        right / np.maximum(predicted, 1),
        right / np.maximum(support, 1),
        2 * right / np.maximum(predicted + support, 1),
    )


def _scores(right: NDArray[Any], predicted: NDArray[Any], support: NDArray[Any]) -> dict[str, Floats]:
    """The metrics of counts, (R,) each, of R data sets with the sums (R, K) of `_sums`; each holds a row at least."""
    precision, recall, f1 = _precision_recall_f1(right, predicted, support)
    num_rows = support.sum(axis=1)
    num_occurring = ((predicted > 0) | (support > 0)).sum(axis=1)
    accuracy = right.sum(axis=1) / num_rows

    def macro(of_class: Floats) -> Floats:
        return np.asarray(of_class.sum(axis=1) / num_occurring)

    def weighted(of_class: Floats) -> Floats:
        return np.asarray((of_class * support).sum(axis=1) / num_rows)

    return {
        "weighted_accuracy": accuracy,
        "macro_f1": macro(f1),
        "weighted_f1": weighted(f1),
        "macro_precision": macro(precision),
        "macro_recall": macro(recall),
        "weighted_precision": weighted(precision),
        "weighted_recall": accuracy,
    }


def _units(values: Floats) -> Ints:
    return np.rint(values / _UNIT).astype(np.int64)


def _checked_probabilities(p: Floats) -> Floats:
    """`p`, (B, K); ValueError naming the first row that is no distribution."""
    wrong = ~(p >= 0)  # NaN is not
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"probabilities[{row}, {column}] (row, class) is {p[row, column]}; expected 0 to 1 (of logits take the "
            "softmax; NaN comes from a model that diverged)"
        )
    total = p.sum(axis=1)
    off = np.flatnonzero(np.abs(total - 1) > _SUM_TOLERANCE)
    if len(off) > 0:
        raise ValueError(f"the probabilities of row {off[0]} sum to {total[off[0]]:.4g}; expected 1")
    return p


def _checked_classes(classes: ArrayLike, num_rows: int, num_classes: int, name: str) -> Ints:
    """The classes of rows as int64 (num_rows,); ValueError, naming the row, unless each is 0 to num_classes - 1."""
    array = np.asarray(classes)
    if array.shape != (num_rows,):
        raise ValueError(f"{name} have shape {array.shape}; expected ({num_rows},), a class for each row")
    if array.size > 0 and array.dtype.kind not in "iu":
        raise ValueError(f"{name} are {array.dtype}; expected integers")
    wrong = np.flatnonzero((array < 0) | (array >= num_classes))
    if len(wrong) > 0:
        raise ValueError(f"{name}[{wrong[0]}] is {array[wrong[0]]}; expected 0 to {num_classes - 1}")
    return array.astype(np.int64)
