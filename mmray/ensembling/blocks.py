"""What is done with one block of rows: combine and write it, measure rules on it, gather what a fit or a report needs.

Nothing here holds more than a block.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from mmray import class_scores, config, predictions
from mmray.ensembling import contours, forest
from mmray.ensembling.fitting import Candidates, candidates_of, concatenated
from mmray.ensembling.forest import Forest
from mmray.ensembling.inputs import SCORE_COLUMNS, Block, Inputs, Int64s, Member, pieces
from mmray.ensembling.pooling import Float32s, Rule, Scores, pool, scores_of
from mmray.features.contour import Contour, nearest_bins, to_grid
from mmray.files import written_whole
from mmray.metrics.melody import MelodyMetrics
from mmray.prepared import ragged_column
from mmray.schema import Column, DatasetInfo
from mmray.tasks import Batch, Metrics, Task, build

Kind = Literal["classes", "posteriors", "contours"]

_CENTS_APART = 50.0


@dataclass(frozen=True)
class Ensemble:
    """Members, and how they are read: what every task gets.

    `kind`: scores of classes, posteriors of frames, or contours, of which the median is taken. `run` is the first
    member's, as plain values, `info` the dataset it was trained on.
    """

    members: tuple[Member, ...]
    kind: Kind
    run: dict[str, Any]
    info: DatasetInfo

    @functools.cached_property
    def task(self) -> Task:
        """The task of the first member."""
        return build(config.from_dict(self.run), self.info)

    @property
    def exclusive(self) -> bool:
        """Whether a row, or a frame, has exactly one class: where every row must have a label."""
        return self.task.all_labelled

    @property
    def num_classes(self) -> int:
        """Classes of a row; of a frame its pitches, and no melody."""
        if self.kind == "classes":
            return len(self.info.class_names)
        return len(self.task.pitches_hz) + 1  # type: ignore[attr-defined]

    @property
    def read(self) -> tuple[str, ...]:
        """The columns of scores that are read."""
        classes = ("scores", "top_classes", "top_scores")
        return {"classes": classes, "posteriors": ("posteriors",), "contours": ("est_f0_hz", "confidence")}[self.kind]

    def columns(self, inputs: Inputs) -> list[Column]:
        """The columns of the predictions: as the members have them; of different k the largest."""
        if self.kind == "classes":
            sizes = [column.shape[0] or 0 for m in self.members if (column := m.column("top_classes"))]
            stored = class_scores.columns_of(self.num_classes, max(sizes, default=None), labelled=False)[1:]
            if not sizes and (dense := self.members[0].column("scores")) is not None:
                stored = [dense.model_copy(update={"dtype": "float32"})]
            return [*inputs.carried, *stored]
        kept: tuple[str, ...] = ("est_f0_hz", "confidence")
        if self.kind == "posteriors" and self.run["predict"]["posteriors"]:
            kept = (*kept, "posteriors")
        found = [column for name in kept if (column := self.members[0].column(name)) is not None]
        return [*inputs.carried, *found]


@dataclass(frozen=True)
class _Piece:
    """Rows of all members: their tables, their scores of n rows or frames, and where each row's frames begin."""

    tables: list[pa.Table]
    scores: list[Scores]
    offsets: Int64s


def kind_of(members: Sequence[Member], method: str) -> Kind:
    """What is combined; ValueError where members have stored different things, or the method doesn't fit."""
    kinds = []
    for member in members:
        if any(member.column(name) for name in ("scores", "top_classes")):
            kinds.append("classes")
        elif member.column("est_f0_hz"):
            kinds.append("melody")
        else:
            names = [column.name for column in member.info.columns]
            raise ValueError(f"{member.folder} holds neither scores of classes nor contours; it has {names}")
    for member, kind in zip(members[1:], kinds[1:], strict=True):
        if kind != kinds[0]:
            raise ValueError(f"{members[0].folder} holds {kinds[0]}, {member.folder} {kind}; they can't be combined")
    if kinds[0] == "classes":
        if method == "median":
            raise ValueError("method median is of contours, and these runs score classes; choose mean, max, ...")
        return "classes"
    return "contours" if method == "median" else "posteriors"


def write(ensemble: Ensemble, rule: Rule | Forest, block: Block, columns: list[Column], path: Path) -> int:
    """Combine a block and write it as one Parquet file, unless it is there; return its rows."""
    if path.exists():
        return block.stop - block.start
    rows = 0
    with written_whole(path) as aside, predictions.open_writer(aside, columns) as writer:
        for piece in _pieces(ensemble, block):
            table = _table(ensemble, columns, piece, _answer(ensemble, rule, piece))
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            rows += table.num_rows
    return rows


def measure(ensemble: Ensemble, rules: Sequence[Rule | Forest], block: Block) -> list[dict[str, Any]]:
    """The state of the task's metrics over the labelled rows of a block, by each of the rules."""
    metrics = [new_metrics(ensemble) for _ in rules]
    for piece in _pieces(ensemble, block):
        for rule, of_rule in zip(rules, metrics, strict=True):
            _update(ensemble, of_rule, piece, _answer(ensemble, rule, piece))
    return [of_rule.state() for of_rule in metrics]


def new_metrics(ensemble: Ensemble) -> Metrics | MelodyMetrics:
    """The accumulator that `measure` gives the states of."""
    return ensemble.task.new_metrics() if ensemble.kind == "classes" else MelodyMetrics()


def gather(ensemble: Ensemble, block: Block, k: int, share: float) -> Candidates:
    """The candidates of those rows of a block that the hash of their id picks, about `share` of all."""
    found = []
    for piece in _pieces(ensemble, block):
        rows = np.flatnonzero([_is_picked(name, share) for name in piece.tables[0].column("id").to_pylist()])
        labels, offsets = _labels(ensemble, piece)
        frames = np.concatenate([np.arange(*piece.offsets[r : r + 2]) for r in rows] or [np.empty(0, np.int64)])
        if ensemble.exclusive:  # what has no label says nothing
            frames = frames[np.diff(offsets)[frames] == 1]
        values = [labels[offsets[i] : offsets[i + 1]] for i in frames]
        picked = np.concatenate(values or [np.empty(0, np.int64)]).astype(np.int64)
        counts = np.concatenate([[0], np.diff(offsets)[frames]]).cumsum()
        scores = [Scores(s.values[frames], None if s.classes is None else s.classes[frames]) for s in piece.scores]
        found.append(candidates_of(scores, ensemble.num_classes, k, (picked, counts)))
    return concatenated(found)


def compare(ensemble: Ensemble, block: Block, k: int) -> dict[str, np.ndarray]:
    """How alike the members are, as sums to be added over blocks.

    `rows`: rows or frames; `apart` (M, M): those where the first choices of two members differ, or their pitches by
    50 cents or in voicing; `pairs`, `sums` (M,) and `products` (M, M) of the scores of candidates.
    """
    num = len(ensemble.members)
    total = {"rows": np.zeros(1), "apart": np.zeros((num, num)), "pairs": np.zeros(1), "sums": np.zeros(num)}
    total["products"] = np.zeros((num, num))
    for piece in _pieces(ensemble, block):
        if ensemble.kind == "contours":
            cents = [_cents(ragged_column(table, "est_f0_hz")[0]) for table in piece.tables]
            total["rows"] += len(cents[0])
            for i, a in enumerate(cents):
                total["apart"][i] += [np.count_nonzero(_differ(a, b)) for b in cents]
            continue
        nothing = np.empty(0, np.int64), np.zeros(len(piece.scores[0].values) + 1, np.int64)
        found = candidates_of(piece.scores, ensemble.num_classes, k, nothing)
        x = found.scores.astype(np.float64)
        first = _first_choices(found)
        total["rows"] += len(first)
        total["apart"] += (first[:, :, np.newaxis] != first[:, np.newaxis, :]).sum(axis=0)
        total["pairs"] += len(x)
        total["sums"] += x.sum(axis=0)
        total["products"] += x.T @ x
    return total


def likeness(total: dict[str, np.ndarray]) -> dict[str, Any]:
    """`disagreement` and, of scores, `correlation`: (M, M) each, from the sums of `compare` over all blocks."""
    result: dict[str, Any] = {"disagreement": (total["apart"] / max(1.0, total["rows"][0])).round(6).tolist()}
    count = total["pairs"][0]
    if count:
        mean = total["sums"] / count
        covariance = total["products"] / count - np.outer(mean, mean)
        deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0))
        scale = np.outer(deviation, deviation)
        known = np.where(scale > 0, covariance / np.where(scale > 0, scale, 1), np.nan).round(6)
        result["correlation"] = [[None if np.isnan(x) else x for x in row] for row in known.tolist()]
    return result


def _pieces(ensemble: Ensemble, block: Block) -> Iterator[_Piece]:
    for tables in pieces(ensemble.members, block, ensemble.read):
        if ensemble.kind == "classes":
            scores = [scores_of(member, table) for member, table in zip(ensemble.members, tables, strict=True)]
            yield _Piece(tables, scores, np.arange(tables[0].num_rows + 1))
        elif ensemble.kind == "posteriors":
            scores, offsets = contours.frames_of(ensemble.members, tables)
            yield _Piece(tables, scores, offsets)
        else:
            yield _Piece(tables, [], np.arange(tables[0].num_rows + 1))


def _answer(ensemble: Ensemble, rule: Rule | Forest, piece: _Piece) -> Float32s | tuple[Contour, Int64s]:
    """Scores of the rows or frames of a piece, (n, C), or its contours with their offsets."""
    if ensemble.kind == "contours":
        assert isinstance(rule, Rule)
        return contours.median_contours(ensemble.members, piece.tables, rule.weights)
    if isinstance(rule, Rule):
        return pool(rule, piece.scores, ensemble.num_classes)
    nothing = np.empty(0, np.int64), np.zeros(len(piece.scores[0].values) + 1, np.int64)
    return forest.score(rule, candidates_of(piece.scores, ensemble.num_classes, rule.k, nothing), ensemble.num_classes)


def _clips(ensemble: Ensemble, piece: _Piece, answer: Float32s | tuple[Contour, Int64s]) -> list[Contour]:
    """The contour of each clip."""
    if isinstance(answer, tuple):
        whole, offsets = answer
        return [Contour(whole.f0_hz[a:b], whole.confidence[a:b]) for a, b in pairwise(offsets.tolist())]
    decode = ensemble.task.decode  # type: ignore[attr-defined]
    return [decode(answer[a:b]) for a, b in pairwise(piece.offsets.tolist())]


def _table(
    ensemble: Ensemble, columns: list[Column], piece: _Piece, answer: Float32s | tuple[Contour, Int64s]
) -> pa.Table:
    reference = piece.tables[0]
    arrays = {c.name: reference.column(c.name) for c in columns if c.name not in SCORE_COLUMNS}
    if ensemble.kind == "classes":
        assert isinstance(answer, np.ndarray)
        arrays |= class_scores.to_arrays(answer, columns)
        return pa.table({c.name: arrays[c.name] for c in columns})
    clips = _clips(ensemble, piece, answer)
    arrays["est_f0_hz"] = [clip.f0_hz for clip in clips]
    arrays["confidence"] = [clip.confidence for clip in clips]
    if isinstance(answer, np.ndarray):
        arrays["posteriors"] = [answer[a:b].astype(np.float16).tobytes() for a, b in pairwise(piece.offsets.tolist())]
    return pa.table(
        {
            c.name: pa.array(arrays[c.name], c.arrow_type()) if c.name in SCORE_COLUMNS else arrays[c.name]
            for c in columns
        }
    )


def _update(
    ensemble: Ensemble, metrics: Metrics | MelodyMetrics, piece: _Piece, answer: Float32s | tuple[Contour, Int64s]
) -> None:
    reference = piece.tables[0]
    if isinstance(metrics, MelodyMetrics):
        references = (reference.column(name).to_pylist() for name in ("id", "ref_times_s", "ref_f0_hz"))
        for clip, name, times_s, f0_hz in zip(_clips(ensemble, piece, answer), *references, strict=True):
            if times_s:
                est_times_s = ensemble.task.settings.frame_times_s(len(clip.f0_hz))  # type: ignore[attr-defined]
                metrics.update(name, times_s, f0_hz, est_times_s, clip.f0_hz)
        return
    assert isinstance(answer, np.ndarray)
    labels, offsets = ragged_column(reference, "labels")
    labels = labels.astype(np.int64)
    if ensemble.exclusive:
        answer = answer[np.diff(offsets) == 1]
        tensors = {"labels": torch.from_numpy(labels)}
    else:
        tensors = {"labels": torch.from_numpy(labels), "labels.offsets": torch.from_numpy(offsets)}
    metrics.update(torch.from_numpy(answer), Batch(len(answer), tensors))


def _labels(ensemble: Ensemble, piece: _Piece) -> tuple[Int64s, Int64s]:
    """The classes of the rows or frames of a piece, flat, and offsets (n + 1,)."""
    reference = piece.tables[0]
    if ensemble.kind == "classes":
        return ragged_column(reference, "labels")
    task: Any = ensemble.task
    values, counts = [], []
    pitches = zip(reference.column("ref_times_s").to_pylist(), reference.column("ref_f0_hz").to_pylist(), strict=True)
    for (times_s, f0_hz), num_frames in zip(pitches, np.diff(piece.offsets).tolist(), strict=True):
        if times_s:
            grid = to_grid(times_s, f0_hz, task.settings.frame_times_s(num_frames))
            values.append(nearest_bins(grid, task.pitches_hz))
        counts.append(np.full(num_frames, bool(times_s), np.int64))
    return np.concatenate([np.empty(0, np.int64), *values]), np.concatenate([[0], *counts]).cumsum()


def _is_picked(name: str, share: float) -> bool:
    if share >= 1:
        return True
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"ensemble").digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _first_choices(found: Candidates) -> np.ndarray:
    """The best candidate of each row that has one, by each member: (rows, M), the lower class of equals."""
    counts = np.diff(found.offsets)
    starts = found.offsets[:-1][counts > 0]
    if not len(starts):
        return np.empty((0, found.scores.shape[1]), np.int64)
    row = np.repeat(np.arange(len(starts)), counts[counts > 0])
    is_best = found.scores == np.maximum.reduceat(found.scores, starts, axis=0)[row]
    place = np.where(is_best, np.arange(len(row))[:, np.newaxis], len(row))
    return np.minimum.reduceat(place, starts, axis=0)


def _cents(f0_hz: np.ndarray) -> np.ndarray:
    """Cents above 1 Hz; NaN where there is no melody."""
    return 1200 * np.log2(np.where(f0_hz > 0, f0_hz, np.nan))


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    alike: np.ndarray = (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) < _CENTS_APART)
    return ~alike
