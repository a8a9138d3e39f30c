"""From scores of classes by several members to one score a class.

Every rule but the forest is: each member's score p_m of a class goes through a function f, is weighted, summed (or the
largest taken), and goes through g; and where a row has exactly one class, the results are divided by their sum.

| rule        | f                      | over members     | g                       |                               |
|-------------|------------------------|------------------|-------------------------|-------------------------------|
| `linear`    | p                      | sum of w_m f     | as it is                | mean, and learned weights     |
| `max`       | p                      | maximum          | as it is                |                               |
| `geometric` | ln p                   | sum of w_m f     | e^x                     | mean of log-probabilities     |
| `rank`      | (K - place) / K        | sum of w_m f     | as it is                | Borda's count; place 0 = best |
| `logistic`  | ln (p / (1 - p))       | b + sum of w_m f | 1 / (1 + e^-x)          | learned                       |
| the same    | ln p                   | sum of w_m f     | e^x                     | where a row has one class     |

Of a member that stored its best k scores alone, every other counts as 0. Logarithms take p as no smaller
than 2^-24, the smallest float16 above 0 (and, in ln(p / (1-p)), as no larger than 1 - 2^-24).

Sums are float32, over the members in their order, so a row's result has the same bits wherever the row stands.
"""
# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numba.extending
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types

from mmray.class_scores import dense_scores
from mmray.ensembling.inputs import Member
from mmray.features.native import compiled
from mmray.metrics.top_k import top_k
from mmray.prepared import tensor_column

Float32s = npt.NDArray[np.float32]

SMALLEST = np.float32(2.0**-24)
_ROWS_AT_ONCE = 32  # float32 sums of so many rows of thousands of classes stay in the second-level cache

Kind = Literal["linear", "max", "geometric", "rank", "logistic"]


@dataclass(frozen=True)
class Rule:
    """How scores become one: see the table above. `exclusive`: a row has exactly one class.

    A member of weight 0 has no influence at all. `places`: K of `rank`.
    """

    kind: Kind
    weights: tuple[float, ...]
    bias: float = 0.0
    exclusive: bool = False
    places: int = 0

    def without(self, member: int) -> Rule:
        """The rule of the other members: its weights still sum to what they did, but for `logistic`."""
        rest = tuple(0.0 if m == member else w for m, w in enumerate(self.weights))
        total = sum(rest)
        if self.kind in ("logistic", "max") or total == 0:
            return replace(self, weights=rest)
        return replace(self, weights=tuple(w * sum(self.weights) / total for w in rest))


@dataclass(frozen=True)
class Scores:
    """What one member says of n rows: scores of every class, (n, C) float32 or float16; or its best k classes.

    Then `classes` has them, (n, k), and `values` their scores.
    """

    values: npt.NDArray[Any]
    classes: npt.NDArray[np.int32] | None = None

    def dense(self, start: int, stop: int, out: Float32s) -> Float32s:
        """The scores of rows `start` to `stop` of every class: in `out`, unless they stand in memory as float32."""
        values = self.values[start:stop]
        if self.classes is not None:
            out = out[: stop - start]
            out[:] = 0
            out[np.arange(len(out))[:, np.newaxis], self.classes[start:stop]] = values
            return out
        if values.dtype == np.float32:
            return values
        out = out[: stop - start]
        _widen(_bits(values), out)
        return out


def scores_of(member: Member, table: pa.Table) -> Scores:
    """The scores of classes that a table of stored predictions has, without a copy where it is one chunk."""
    if (column := member.column("scores")) is None:
        return Scores(tensor_column(table, "top_scores"), tensor_column(table, "top_classes"))
    return Scores(dense_scores(table, column))


def pool(rule: Rule, members: Sequence[Scores], num_classes: int) -> Float32s:
    """The scores of n rows by all members together, (n, C) float32."""
    result = np.empty((len(members[0].values), num_classes), np.float32)
    counted = [(m, np.float32(w)) for m, w in zip(members, rule.weights, strict=True) if w != 0]
    if not counted:
        raise ValueError("no member of the ensemble has a weight other than 0")
    of_one_type = all(m.classes is None and m.values.dtype == counted[0][0].values.dtype for m, _ in counted)
    if rule.kind == "linear" and of_one_type:
        _weighted_sum(result, tuple(_bits(m.values) for m, _ in counted), np.array([w for _, w in counted]))
        return result
    room = np.empty((_ROWS_AT_ONCE, num_classes), np.float32)
    for start in range(0, len(result), _ROWS_AT_ONCE):
        total = result[start : start + _ROWS_AT_ONCE]
        total[:] = rule.bias
        for member, weight in counted:
            x = member.dense(start, start + len(total), room)
            if rule.kind == "max":
                np.maximum(total, x, out=total)
            else:
                total += weight * (x if rule.kind == "linear" else transformed(rule, x))
        _finish(rule, total)
    return result


def transformed(rule: Rule, x: Float32s) -> Float32s:
    """f of the rule, of scores (n, C)."""
    if rule.kind == "rank":
        places = min(rule.places or x.shape[1], x.shape[1])
        classes, values = top_k(x, places)
        counts = np.zeros_like(x)
        credit = np.float32(1) - np.arange(places, dtype=np.float32) / np.float32(places)
        counts[np.arange(len(x))[:, np.newaxis], classes] = np.where(values > 0, credit, np.float32(0))
        return counts
    log_p = np.log(np.maximum(x, SMALLEST))
    if rule.kind == "logistic" and not rule.exclusive:
        log_p -= np.log1p(-np.clip(x, SMALLEST, 1 - SMALLEST))
    return log_p


def normalise(scores: Float32s) -> None:
    """Divide each row of (n, C) by its sum, in place; a row of zeros gives every class the same."""
    total = scores.sum(axis=1, keepdims=True)
    scores /= np.where(total > 0, total, np.float32(1))
    scores[total[:, 0] <= 0] = np.float32(1) / np.float32(scores.shape[1])


def _finish(rule: Rule, total: Float32s) -> None:
    if rule.kind == "geometric" or (rule.kind == "logistic" and rule.exclusive):
        if rule.exclusive:
            total -= total.max(axis=1, keepdims=True)
        np.exp(total, out=total)
    elif rule.kind == "logistic":
        np.negative(total, out=total)
        np.exp(total, out=total)
        total += 1
        np.reciprocal(total, out=total)
    if rule.exclusive and rule.kind != "linear":
        normalise(total)


def _bits(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What compiled code takes: float16 as its bits."""
    return np.ascontiguousarray(x).view(np.uint16) if x.dtype == np.float16 else np.ascontiguousarray(x)


def _code_of_number(typing_context: Any, x: Any) -> Any:
    """A float32 as it is; of 16 bits the float32 of that float16, by an instruction that numba has no name for."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if x == types.float32:
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return (types.float32(x), codegen) if x in (types.float32, types.uint16) else None


_number: Any = numba.extending.intrinsic(_code_of_number)


@compiled
def _widen(bits: npt.NDArray[np.uint16], out: Float32s) -> None:
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = _number(bits[i, j])


@compiled
def _weighted_sum(total: Float32s, members: tuple[npt.NDArray[Any], ...], weights: Float32s) -> None:
    """The sum over members of one type of weight times scores: each row once, while it is in the first-level cache."""
    for i in range(total.shape[0]):
        row = total[i]
        row[:] = np.float32(0)
        for m in range(len(members)):
            x, weight = members[m][i], weights[m]
            for j in range(len(row)):
                row[j] += weight * _number(x[j])
