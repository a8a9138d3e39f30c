"""The members of an ensemble: stored predictions of the same rows by several runs, matched by id.

Members stand in the order of their names, so that the order in which they are given makes no difference. The rows are
those of the first; a member that stores them in another order is read by row number.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmray import config
from mmray.predictions import PredictionsInfo, read_info, read_tables
from mmray.schema import Column, DatasetInfo
from mmray.storage import open_parquet
from mmray.stores import steadily

Int64s = npt.NDArray[np.int64]

SCORE_COLUMNS = ("scores", "top_classes", "top_scores", "est_f0_hz", "confidence", "posteriors")
LABEL_COLUMNS = ("labels", "ref_times_s", "ref_f0_hz")


@dataclass(frozen=True)
class Member:
    """A run, and its stored predictions of one split."""

    name: str
    folder: Path
    info: PredictionsInfo
    parts: tuple[tuple[str, tuple[int, ...]], ...]  # file and the rows of its row groups

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return sum((self.folder / name).stat().st_size for name, _ in self.parts)

    def column(self, name: str) -> Column | None:
        """The column called `name`, or None."""
        return next((column for column in self.info.columns if column.name == name), None)

    def identity(self) -> list[object]:
        """What changes when the predictions do."""
        stats = [(name, (self.folder / name).stat()) for name, _ in self.parts]
        files = [(name, s.st_size, s.st_mtime_ns) for name, s in stats]
        return [self.name, self.info.model_dump(mode="json"), files]


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` of the ensemble; `rows` has, for a member in another order, its numbers of these rows."""

    index: int
    start: int
    stop: int
    rows: tuple[Int64s | None, ...]


@dataclass(frozen=True)
class Inputs:
    """Members whose rows are matched.

    `rows` has, for each member, its row numbers in the order of the ensemble, (num_rows,), or None where they are
    0, 1, 2... `dropped` counts the rows of each member that another one lacks.
    """

    members: tuple[Member, ...]
    rows: tuple[Int64s | None, ...]
    num_rows: int
    dropped: dict[str, int] = field(default_factory=dict)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of all that the members predicted, and of which rows are used."""
        identity = [[member.identity() for member in self.members], self.num_rows, sorted(self.dropped.items())]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def reference(self) -> Member:
        """The member whose rows and whose columns beside the scores are taken."""
        return self.members[0]

    @property
    def carried(self) -> list[Column]:
        """The columns that stay what they are: ids, labels and the like."""
        return [column for column in self.reference.info.columns if column.name not in SCORE_COLUMNS]

    def blocks(self, block_mb: float = 128.0) -> list[Block]:
        """The rows in blocks that hold about `block_mb` of all members' files together."""
        row_bytes = max(1.0, sum(m.num_bytes / max(1, m.info.rows) for m in self.members))
        size = max(1, int(block_mb * 2**20 / row_bytes))
        spans = [(start, min(start + size, self.num_rows)) for start in range(0, self.num_rows, size)]
        return [
            Block(index, start, stop, tuple(None if rows is None else rows[start:stop] for rows in self.rows))
            for index, (start, stop) in enumerate(spans)
        ]


def open_member(name: str, folder: Path) -> Member:
    """The predictions in `folder`; ValueError where there are none, or not as many as there should be."""
    info = read_info(folder)
    files = sorted(path for path in folder.glob("part-*.parquet"))
    parts = []
    for path in files:
        footer = open_parquet(path).metadata
        parts.append((path.name, tuple(footer.row_group(g).num_rows for g in range(footer.num_row_groups))))
    rows = sum(sum(groups) for _, groups in parts)
    if rows != info.rows:
        raise ValueError(f"{folder} should hold {info.rows:,} rows and holds {rows:,}; predict again")
    return Member(name, folder, info, tuple(parts))


def match(members: Sequence[Member], missing: str = "error") -> Inputs:
    """Match the rows of members by id.

    ValueError, saying what differs, where members predicted other kinds of things, and where a member gives an id
    twice. An id that one of them lacks is an error too, or, with `missing="intersect"`, left out and counted.
    """
    ordered = tuple(sorted(members, key=lambda m: (m.name, str(m.folder))))
    if len(ordered) < 2:
        raise ValueError(f"an ensemble needs 2 members or more, not {len(ordered)}")
    if twice := [a.folder for a, b in pairwise(ordered) if a.folder.resolve() == b.folder.resolve()]:
        raise ValueError(f"{twice[0]} is given twice; a member that shall count more needs a weight, not a copy")
    reference = ordered[0]
    for member in ordered[1:]:
        if member.info.labelled != reference.info.labelled:
            with_labels, without = (member, reference) if member.info.labelled else (reference, member)
            raise ValueError(f"{with_labels.folder} has labels and {without.folder} has none: they are of other rows")
    digests = [_digest_of_ids(member) for member in ordered]
    if len(set(digests)) == 1:
        return Inputs(ordered, (None,) * len(ordered), reference.info.rows)
    return _matched_by_id(ordered, missing)


def require_same_classes(infos: Sequence[tuple[str, DatasetInfo]], runs: Sequence[config.Run]) -> None:
    """ValueError, saying what differs, unless all runs do the same task over the same list of classes."""
    (first, info), run = infos[0], runs[0]
    task = run.task.name  # type: ignore[attr-defined]
    for (name, other), other_run in zip(infos[1:], runs[1:], strict=True):
        other_task = other_run.task.name  # type: ignore[attr-defined]
        if other_task != task:
            raise ValueError(f"{first} does {task}, {name} does {other_task}; only runs of one task can be combined")
        if len(other.class_names) != len(info.class_names):
            raise ValueError(
                f"{first} has {len(info.class_names):,} classes, {name} has {len(other.class_names):,}; the members of "
                "an ensemble must share one list of classes"
            )
        for c, (ours, theirs) in enumerate(zip(info.class_names, other.class_names, strict=True)):
            if ours != theirs:
                raise ValueError(
                    f"class {c} is {ours!r} for {first} and {theirs!r} for {name}; the members of an ensemble must "
                    "share one list of classes"
                )


class Reader:
    """Reads rows of one member by number, holding one row group at a time."""

    def __init__(self, member: Member, columns: Sequence[str]) -> None:
        self._member, self._columns = member, list(columns)
        self._places = [(name, g) for name, groups in member.parts for g in range(len(groups))]
        sizes = [rows for _, groups in member.parts for rows in groups]
        self.starts: Int64s = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._file: tuple[str, pq.ParquetFile] | None = None
        self._held: tuple[int, pa.Table] | None = None

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop` of one row group, without a copy."""
        group = int(np.searchsorted(self.starts, start, side="right")) - 1
        first = int(self.starts[group])
        return self._group(group).slice(start - first, stop - start)

    def take(self, rows: Int64s) -> pa.Table:
        """The rows with these numbers, in this order."""
        group_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(group_of, kind="stable")
        found = [self._group(int(g)).take(pa.array(rows[group_of == g] - self.starts[g])) for g in np.unique(group_of)]
        place = np.empty(len(rows), np.int64)
        place[order] = np.arange(len(rows))
        return pa.concat_tables(found).combine_chunks().take(pa.array(place))

    def _group(self, group: int) -> pa.Table:
        if self._held is None or self._held[0] != group:
            self._held = None  # let go of the one before the next is read
            name, index = self._places[group]
            if self._file is None or self._file[0] != name:
                self._file = name, open_parquet(self._member.folder / name, memory_map=True)
            file = self._file[1]
            self._held = (
                group,
                steadily(
                    str(self._member.folder / name),
                    lambda: file.read_row_group(index, columns=self._columns, use_threads=False),
                ),
            )
        return self._held[1]


def pieces(members: Sequence[Member], block: Block, columns: Sequence[str]) -> Iterator[list[pa.Table]]:
    """The rows of a block piece by piece, each a table a member of the same rows: ids, labels and `columns`.

    Where all members store their rows in one order, a piece lies within one row group of each of them, and nothing is
    copied. ValueError where the members disagree on an id or a label.
    """
    readers = [Reader(m, _wanted(m, columns, carried=m is members[0])) for m in members]
    if all(rows is None for rows in block.rows):
        inner = {int(s) for r in readers for s in r.starts if block.start < s < block.stop}
        spans = pairwise([block.start, *sorted(inner), block.stop])
        found: Iterator[list[pa.Table]] = ([r.rows(a, b) for r in readers] for a, b in spans)
    else:
        numbers = [np.arange(block.start, block.stop) if rows is None else rows for rows in block.rows]
        found = iter([[r.take(rows) for r, rows in zip(readers, numbers, strict=True)]])
    for tables in found:
        _require_agreement(members, tables)
        yield tables


def _wanted(member: Member, columns: Sequence[str], carried: bool) -> list[str]:
    return [
        c.name
        for c in member.info.columns
        if c.name in columns or c.name == "id" or c.name in LABEL_COLUMNS or (carried and c.name not in SCORE_COLUMNS)
    ]


def _require_agreement(members: Sequence[Member], tables: Sequence[pa.Table]) -> None:
    first = tables[0]
    for member, table in zip(members[1:], tables[1:], strict=True):
        for name in ("id", *LABEL_COLUMNS):
            if name not in first.column_names or name not in table.column_names:
                continue
            ours, theirs = first.column(name), table.column(name)
            if ours.equals(theirs):
                continue
            for row, (a, b) in enumerate(zip(ours.to_pylist(), theirs.to_pylist(), strict=True)):
                if a != b and (name != "labels" or sorted(a) != sorted(b)):
                    raise ValueError(
                        f"{first.column('id')[row].as_py()!r} has {name} {_shown(a)} in {members[0].folder} and "
                        f"{_shown(b)} in {member.folder}; the members of an ensemble must have predicted the same rows"
                    )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _ids(member: Member) -> Iterator[pa.Array]:
    others = [c.name for c in member.info.columns if c.name != "id"]
    for table in read_tables(member.folder, 65536, leave_out=others):
        yield table.column("id").combine_chunks()


def _digest_of_ids(member: Member) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for ids in _ids(member):
        digest.update("\0".join(ids.to_pylist()).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _matched_by_id(members: tuple[Member, ...], missing: str) -> Inputs:
    ids = [np.concatenate([part.to_numpy(zero_copy_only=False) for part in _ids(m)]).astype(str) for m in members]
    places = [{name: row for row, name in enumerate(of_member.tolist())} for of_member in ids]
    for member, of_member, place in zip(members, ids, places, strict=True):
        if len(place) < len(of_member):
            names, counts = np.unique(of_member, return_counts=True)
            raise ValueError(
                f"{member.folder} has {str(names[counts.argmax()])!r} {counts.max()} times; ids match rows"
            )
    common = set(places[0]).intersection(*places[1:])
    dropped = {m.name: len(place) - len(common) for m, place in zip(members, places, strict=True)}
    if missing != "intersect":
        every = set().union(*places)
        for member, place in zip(members, places, strict=True):
            if lacking := sorted(every - set(place))[:3]:
                raise ValueError(
                    f"{member.folder} lacks {len(every) - len(place):,} of {len(every):,} ids that other members have, "
                    f"such as {', '.join(lacking)}; predict them, or combine the rows that all have: "
                    "--missing intersect"
                )
    if not common:
        raise ValueError(f"{members[0].folder} and the other members have no id in common; are they of one split?")
    kept = [name for name in ids[0].tolist() if name in common]
    rows = [np.array([place[name] for name in kept], np.int64) for place in places]
    in_order = [np.array_equal(of_member, np.arange(len(kept))) for of_member in rows]
    return Inputs(
        members,
        tuple(None if plain else of_member for of_member, plain in zip(rows, in_order, strict=True)),
        len(kept),
        {name: count for name, count in dropped.items() if count},
    )
