"""Rules that are learned from candidates: rows of the split `val`, and in each the classes that a member thinks likely.

A candidate is one class of one row, with the members' scores of it and whether it is a label: the best `k` classes of
every member together. What no member has among its best is left out, as no rule could tell anything of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmray.ensembling.inputs import Int64s
from mmray.ensembling.pooling import SMALLEST, Float32s, Rule, Scores, transformed
from mmray.metrics.top_k import top_k

Float64s = npt.NDArray[np.float64]

_DECIMALS = 6  # of what is learned: the order of rows changes sums in digits far beyond
_ROWS_AT_ONCE = 256
_PATIENCE = 3


@dataclass(frozen=True)
class Candidates:
    """Candidates of R rows, row by row: `scores` (N, M) float32, their `classes` (N,), `hits` (N,): which are labels.

    Those of row r are `offsets[r]` to `offsets[r + 1]`.
    """

    scores: Float32s
    classes: npt.NDArray[np.int32]
    hits: npt.NDArray[np.bool_]
    offsets: Int64s


def candidates_of(members: Sequence[Scores], num_classes: int, k: int, labels: tuple[Int64s, Int64s]) -> Candidates:
    """The union of every member's best `k` classes of each row; `labels` are flat classes and offsets (rows + 1,)."""
    num_rows = len(members[0].values)
    room = [np.empty((_ROWS_AT_ONCE, num_classes), np.float32) for _ in members]
    values, label_offsets = labels
    parts = []
    for start in range(0, max(1, num_rows), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, num_rows)
        dense = [member.dense(start, stop, r) for member, r in zip(members, room, strict=True)]
        likely = np.zeros((stop - start, num_classes), np.bool_)
        for x in dense:
            best, value = top_k(x, k)
            likely[np.nonzero(value > 0)[0], best[value > 0]] = True
        labelled = np.zeros_like(likely)
        of_rows = values[label_offsets[start] : label_offsets[stop]]
        labelled[np.repeat(np.arange(stop - start), np.diff(label_offsets[start : stop + 1])), of_rows] = True
        at = np.nonzero(likely)
        offsets = np.concatenate([[0], likely.sum(axis=1)]).cumsum(dtype=np.int64)
        parts.append(
            Candidates(np.stack([x[at] for x in dense], axis=1), at[1].astype(np.int32), labelled[at], offsets)
        )
    return concatenated(parts)


def concatenated(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several parts, in their order."""
    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    return Candidates(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.hits for part in parts]),
        np.concatenate([[0], counts]).cumsum(dtype=np.int64),
    )


def require_both(candidates: Candidates) -> None:
    """ValueError where no candidate is a label, or all are: there is nothing to learn."""
    right = int(candidates.hits.sum())
    if right in (0, len(candidates.hits)):
        raise ValueError(
            f"{right:,} of {len(candidates.hits):,} candidate classes of the split val are labels: nothing tells right "
            "from wrong; use a method that learns nothing, such as mean"
        )


def fit_weights(candidates: Candidates, exclusive: bool) -> tuple[float, ...]:
    """The weights of the linear rule, each 0 or more, with sum 1, that give the labels the least log-loss.

    The loss is convex: the mean of -ln(w . a), where a has the probability that each member gave to what is the case:
    to the label, where a row has exactly one class, else for each candidate to its being a label or not. So it ends
    with a proof: no weights have a loss that is smaller by more than 1e-6.
    """
    from scipy.optimize import minimize

    p = candidates.scores.astype(np.float64)
    a = p[candidates.hits] if exclusive else np.where(candidates.hits[:, np.newaxis], p, 1 - p)
    a = np.maximum(a, float(SMALLEST))
    num_members = a.shape[1]

    def loss(w: Float64s) -> tuple[float, Float64s]:
        mixed = np.maximum(a @ w, float(SMALLEST))
        return float(-np.log(mixed).mean()), -(a / mixed[:, np.newaxis]).mean(axis=0)

    w = np.full(num_members, 1 / num_members)
    found = minimize(
        loss, w, jac=True, method="SLSQP", bounds=[(0, 1)] * num_members, options={"ftol": 1e-12, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda v: v.sum() - 1, "jac": np.ones_like},
    )  # fmt: skip
    # From there by expectation maximisation, which never loses, until the gap to the optimum, at most the largest of
    # the gradient's parts less 1, is closed.
    w = np.maximum(found.x, 1e-12)
    w /= w.sum()
    for _ in range(10_000):
        rise = -loss(w)[1]
        if rise.max() - 1 < 1e-7:
            break
        w = w * rise
        w /= w.sum()
    return _rounded(w)


def fit_stack(candidates: Candidates, rule: Rule) -> Rule:
    """The rule `logistic` with weights and bias of the least log-loss, plus half the sum of the weights' squares.

    A logistic regression on the members' log-odds of each candidate; or, where a row has exactly one class, on their
    log-probabilities, against the other candidates of the row, without a bias.
    """
    from scipy.optimize import minimize

    features = transformed(rule, candidates.scores).astype(np.float64)
    loss = _softmax_loss if rule.exclusive else _logistic_loss
    options = {"ftol": 1e-15, "gtol": 1e-6, "maxiter": 1000}
    start = np.zeros(features.shape[1] + (not rule.exclusive))
    found = minimize(loss, start, (features, candidates), jac=True, method="L-BFGS-B", options=options)
    learned = tuple(float(x) for x in np.round(found.x, _DECIMALS))
    if rule.exclusive:
        return Rule("logistic", learned, 0.0, exclusive=True)
    return Rule("logistic", learned[:-1], learned[-1])


def _logistic_loss(v: Float64s, features: Float64s, candidates: Candidates) -> tuple[float, Float64s]:
    """Of weights and bias v (M + 1,) over features (N, M): the penalised loss, and its gradient."""
    z = features @ v[:-1] + v[-1]
    value = float((np.logaddexp(0, z) - candidates.hits * z).sum())
    error = np.exp(-np.logaddexp(0, -z)) - candidates.hits
    gradient = np.append(features.T @ error + v[:-1], error.sum())
    return value + 0.5 * float(v[:-1] @ v[:-1]), gradient


def _softmax_loss(v: Float64s, features: Float64s, candidates: Candidates) -> tuple[float, Float64s]:
    """Of weights v (M,): a row's label against its other candidates; a row whose label is none of them has no loss."""
    counts = np.diff(candidates.offsets)
    starts, counts = candidates.offsets[:-1][counts > 0], counts[counts > 0]
    row = np.repeat(np.arange(len(starts)), counts)
    z = features @ v
    z -= np.maximum.reduceat(z, starts)[row]
    e = np.exp(z)
    total = np.add.reduceat(e, starts)
    counted = np.add.reduceat(candidates.hits.astype(np.float64), starts)
    value = float((counted * np.log(total)).sum() - candidates.hits @ z)
    error = counted[row] * e / total[row] - candidates.hits
    return value + 0.5 * float(v @ v), features.T @ error + v


def fit_greedy(
    num_members: int, score: Callable[[list[tuple[float, ...]]], list[float]], rounds: int
) -> tuple[tuple[float, ...], float]:
    """Weights of the linear rule by greedy selection with replacement, and what `score` says of them.

    `score` takes several weightings and gives the metric of each, more being better. A round adds the member that
    makes the mean of all that were chosen best, the same one again if need be; the best round counts, the first of
    equals. It ends after `rounds`, or when three rounds have brought nothing. R. Caruana et al., "Ensemble Selection
    from Libraries of Models", ICML 2004.
    """
    counts = np.zeros(num_members, np.int64)
    best, best_counts, idle = -np.inf, counts, 0
    for _ in range(rounds):
        trials = [counts + one for one in np.eye(num_members, dtype=np.int64)]
        values = score([_shares(trial) for trial in trials])
        chosen = int(np.argmax(values))
        counts, idle = trials[chosen], idle + 1
        if values[chosen] > best:
            best, best_counts, idle = values[chosen], counts, 0
        if idle == _PATIENCE:
            break
    return _shares(best_counts), float(best)


def _shares(counts: Int64s) -> tuple[float, ...]:
    return tuple((counts / counts.sum()).tolist())


def _rounded(w: Float64s) -> tuple[float, ...]:
    """To so many decimals, with the sum 1 still: the largest takes up the rest."""
    rounded = np.round(w, _DECIMALS)
    largest = int(rounded.argmax())
    rounded[largest] = np.round(1 - np.delete(rounded, largest).sum(), _DECIMALS)
    return tuple(float(x) for x in rounded)
