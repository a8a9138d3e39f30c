"""From a corpus to a prepared dataset, one part at a time. No Ray: `mmray.on_ray.prepare` spreads the parts.

A part is a few sources of one split, read in bounded memory and written as one Parquet file a split, with a note of
what it holds (`parts/part-00003.json`). A part with a note is finished and never done again. When all are, the
folder gets its `dataset.json` and its name: the hash of everything that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, TypeAdapter

from mmray import config, lookup
from mmray.datasets import Rejected, Source
from mmray.files import publish_folder, write_json, write_text, written_whole
from mmray.prepared import ragged_column, tensor_column
from mmray.schema import MAX_GROUPS, Column, DatasetInfo, FileInfo, SplitInfo, arrow_schema, is_feature
from mmray.storage import at, is_remote, statuses

FORMAT = 3  # of the folder; part of its hash


@dataclass(frozen=True)
class Part:
    """Sources that one task reads."""

    index: int
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """Stem of the part's files."""
        return f"part-{self.index:05d}"

    def to_json(self) -> str:
        """All of it, for the task that reads it."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> Part:
        """The part that `to_json` wrote."""
        return _adapter().validate_json(text)


@functools.cache
def _adapter() -> TypeAdapter[Part]:
    return TypeAdapter(Part)


class PartNote(BaseModel):
    """What a finished part holds, by split."""

    splits: dict[str, SplitInfo]
    rejected: list[dict[str, str | int | None]]


class BadInputError(ValueError):
    """An input that gave no row, where the run says that this is a failure."""


@dataclass(frozen=True)
class Plan:
    """All that a preparation needs: where from, where to, in which parts."""

    run: config.Run
    parts: tuple[Part, ...]
    folder: Path

    @property
    def aside(self) -> Path:
        """Where the folder is made: beside its name until it is whole; in a store in its place, the note last."""
        return self.folder if is_remote(self.folder) else self.folder.with_name(f".{self.folder.name}.partial")


def plan(run: config.Run) -> Plan:
    """List the corpus and name the prepared dataset; reads no data. ValueError where the corpus is not as set."""
    dataset = _module(run)
    sources: list[Source] = dataset.sources(run.dataset)
    if run.prepare.split.by == "corpus":
        for source in sources:
            if source.split is None:
                raise ValueError(
                    f"{source.path} belongs to no split by its name or folder; mark it as its corpus does (train*, "
                    f"validate*, test*) or set prepare.split.by: hash"
                )
    elif reason := getattr(run.dataset, "why_corpus_split", None):
        raise ValueError(f"prepare.split.by={run.prepare.split.by!r}: {reason}; set prepare.split.by: corpus")
    stamps = _stamps(path for source in sources for path in (source.path, *source.companions))
    identity = {
        "format": FORMAT,
        "dataset": run.dataset.model_dump(mode="json"),
        "prepare": run.prepare.model_dump(mode="json", exclude={"out", "on_bad_input", "max_bad_fraction"}),
        "sources": [
            (s.path, s.split, s.num_bytes, s.note, [stamps[path] for path in (s.path, *s.companions)]) for s in sources
        ],
    }
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
    name: str = run.dataset.name  # type: ignore[attr-defined]
    return Plan(run, tuple(_parts(sources, run.prepare.part_mb << 20)), at(run.prepare.out) / f"{name}-{digest}")


def write_part(run: config.Run, part: Part, folder: Path) -> PartNote:
    """Read the sources of a part and write its files into `folder`, unless they are there; return what they hold.

    Raises BadInputError at the first rejected input under `on_bad_input: fail`.
    """
    note_path = folder / "parts" / f"{part.name}.json"
    if note_path.exists():
        return PartNote.model_validate_json(note_path.read_text())
    dataset = _module(run)
    columns: list[Column] = dataset.columns(run.dataset)
    rejected: list[Rejected] = []

    def reject(bad: Rejected) -> None:
        if run.prepare.on_bad_input == "fail":
            raise BadInputError(f"{bad}\nmend or remove it, or set prepare.on_bad_input: skip")
        rejected.append(bad)

    num_classes = len(dataset.class_names(run.dataset))
    writers: dict[str, _SplitWriter] = {}
    with ExitStack() as files:
        for source in part.sources:
            for batch in dataset.read(run.dataset, source, reject):
                table = pa.Table.from_batches([batch])
                for split, rows in _by_split(table, source, run.prepare.split, dataset.GROUP_KEY):
                    if split not in writers:
                        name = f"{split}/{part.name}.parquet"
                        file = files.enter_context(written_whole(folder / name))
                        writers[split] = _SplitWriter(
                            file, name, columns, dataset, num_classes, run.prepare.row_group_mb
                        )
                    writers[split].add(rows)
        splits = {split: writer.finish() for split, writer in writers.items()}
    note = PartNote(splits=splits, rejected=[bad.as_dict() for bad in rejected])
    write_text(note_path, note.model_dump_json())
    return note


def publish(plan: Plan, notes: Sequence[PartNote]) -> DatasetInfo:
    """Write `dataset.json` from the notes of all parts, in their order, and give the folder its name.

    ValueError where no row is left.
    """
    run, dataset = plan.run, _module(plan.run)
    names: list[str] = dataset.class_names(run.dataset)
    splits: dict[str, SplitInfo] = {}
    for name in ("train", "val", "test", "all"):
        found = [note.splits[name] for note in notes if name in note.splits]
        if found:
            splits[name] = _merge(found)
    rejected = [bad for note in notes for bad in note.rejected]
    rows = sum(split.rows for split in splits.values())
    # Reasons that differ in numbers alone are one kind.
    reasons = Counter(re.sub(r"\d+", "N", str(bad["reason"]).split(":")[0]) for bad in rejected)
    if not rows:
        raise ValueError(f"{run.dataset.path} holds no row")  # type: ignore[attr-defined]
    info = DatasetInfo(
        id=plan.folder.name,
        columns=dataset.columns(run.dataset),
        class_names=names,
        splits=splits,
        split_rule=_split_rule(run.prepare.split),
        group_key=dataset.GROUP_KEY,
        rows_in=rows + len(rejected),
        rows_out=rows,
        rejected=len(rejected),
        rejected_reasons=dict(reasons),
    )
    if not is_remote(plan.aside):
        for leftover in plan.aside.rglob(".*"):  # of tasks that were killed while they wrote
            leftover.unlink()
    write_text(plan.aside / "rejected.jsonl", "".join(json.dumps(bad) + "\n" for bad in rejected))
    write_json(plan.aside / "dataset.json", info.model_dump(mode="json"))
    publish_folder(plan.aside, plan.folder)
    return info


def check_rejected(run: config.Run, folder: Path, info: DatasetInfo) -> None:
    """Raise BadInputError, listing the first, where more inputs were rejected than the run allows."""
    fraction = run.prepare.max_bad_fraction if run.prepare.on_bad_input == "skip" else 0.0
    if info.rejected <= fraction * info.rows_in:
        return
    with (folder / "rejected.jsonl").open(encoding="utf-8") as file:
        listed = "\n".join(f"  {Rejected(**json.loads(line))}" for line in itertools.islice(file, 10))
    allowed = f"prepare.max_bad_fraction={fraction:g} allows" if fraction else "this run allows"
    raise BadInputError(
        f"{info.rejected:,} of {info.rows_in:,} inputs are bad, more than {allowed}; the first:\n{listed}\n"
        f"mend or remove them, or set prepare.on_bad_input: skip and a prepare.max_bad_fraction that fits"
    )


def split_of(key: str, split: config.Split) -> str:
    """The split that a group key belongs to: a point in [0, 1) by its hash, against the cumulated fractions."""
    digest = hashlib.blake2b(f"{split.seed}:{key}".encode(), digest_size=8).digest()
    point, end = int.from_bytes(digest, "big") / 2**64, 0.0
    shares = [(name, split.fractions.get(name, 0.0)) for name in ("train", "val", "test")]  # not as they are written
    for name, fraction in shares:
        end += fraction
        if point < end:
            return name
    return max(shares, key=lambda share: share[1])[0]  # the fractions sum to 1 but for rounding


class _SplitWriter:
    """Writes the rows of one part and split in row groups of about `row_group_mb`."""

    def __init__(
        self, file: Path, name: str, columns: list[Column], dataset: ModuleType, num_classes: int, row_group_mb: float
    ) -> None:
        # Vectors and frames are noise to a compressor and to a dictionary: they would cost time and save nothing.
        noise = {c.name for c in columns if is_feature(c)}
        self._writer = pq.ParquetWriter(
            file,
            arrow_schema(columns),
            use_dictionary=False,
            compression={c.name: "none" if c.name in noise else "zstd" for c in columns},
            write_statistics=[],
        )
        self._name = name
        self._group_bytes = row_group_mb * 2**20
        self._pending: list[pa.Table] = []
        self._row_groups: list[int] = []
        self._num_bytes = 0
        self._label_key: str = dataset.LABEL_KEY
        self._group_key: str = dataset.GROUP_KEY
        self._groups: set[str] | None = set()
        self._has_classes = any(c.name == "labels" for c in columns)
        self._labelled_rows = 0
        self._label_counts = np.zeros(num_classes, np.int64)
        self._max_labels = 0
        self._sums: dict[str, np.ndarray] = {name: np.zeros(()) for name in getattr(dataset, "SUMMED", ())}

    def add(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._num_bytes += table.nbytes
        labels, offsets = ragged_column(table, self._label_key)
        self._labelled_rows += int(np.count_nonzero(np.diff(offsets)))
        if self._groups is not None:
            self._groups.update(map(str, pc.unique(table.column(self._group_key)).to_pylist()))
            if len(self._groups) > MAX_GROUPS:
                self._groups = None
        if self._has_classes:
            self._label_counts += np.bincount(labels, minlength=len(self._label_counts))
            self._max_labels = max(self._max_labels, int(np.diff(offsets).max(initial=0)))
        for name in self._sums:
            self._sums[name] = self._sums[name] + tensor_column(table, name).sum(axis=0, dtype=np.float64)
        self._write(finish=False)

    def finish(self) -> SplitInfo:
        self._write(finish=True)
        self._writer.close()
        return SplitInfo(
            rows=sum(self._row_groups),
            num_bytes=self._num_bytes,
            files=[FileInfo(path=self._name, row_groups=self._row_groups)],
            labelled_rows=self._labelled_rows,
            groups=None if self._groups is None else sorted(self._groups),
            label_counts=self._label_counts.tolist() if self._has_classes else None,
            max_labels=self._max_labels,
            sums={name: total.tolist() for name, total in self._sums.items()},
        )

    def _write(self, finish: bool) -> None:
        table = pa.concat_tables(self._pending)
        rows_a_group = max(1, int(self._group_bytes * table.num_rows / max(1, table.nbytes)))
        while table.num_rows >= rows_a_group or (finish and table.num_rows):
            group = table.slice(0, rows_a_group)
            self._writer.write_table(group, row_group_size=group.num_rows)
            self._row_groups.append(group.num_rows)
            table = table.slice(group.num_rows)
        self._pending = [table]


def _by_split(table: pa.Table, source: Source, split: config.Split, group_key: str) -> Iterator[tuple[str, pa.Table]]:
    if split.by == "none":
        yield "all", table
    elif split.by == "corpus":
        assert source.split is not None  # plan() made sure
        yield source.split, table
    else:
        names = pa.array([split_of(str(key), split) for key in table.column(group_key).to_pylist()])
        for name in split.fractions:
            rows = table.filter(pc.equal(names, name))
            if rows.num_rows:
                yield name, rows


def _parts(sources: Iterable[Source], part_bytes: int) -> Iterator[Part]:
    index, held_bytes = 0, 0
    held: list[Source] = []
    for source in sources:
        if held and (held_bytes + source.num_bytes > part_bytes or source.split != held[0].split):
            yield Part(index, tuple(held))
            index, held, held_bytes = index + 1, [], 0
        held.append(source)
        held_bytes += source.num_bytes
    if held:
        yield Part(index, tuple(held))


def _merge(splits: Sequence[SplitInfo]) -> SplitInfo:
    counts = [split.label_counts for split in splits if split.label_counts is not None]
    known = [split.groups for split in splits]
    groups = None if None in known else {group for groups in known for group in groups or ()}
    return SplitInfo(
        rows=sum(split.rows for split in splits),
        num_bytes=sum(split.num_bytes for split in splits),
        files=[file for split in splits for file in split.files],
        labelled_rows=sum(split.labelled_rows for split in splits),
        groups=sorted(groups) if groups is not None and len(groups) <= MAX_GROUPS else None,
        label_counts=np.sum(counts, axis=0).tolist() if counts else None,
        max_labels=max(split.max_labels for split in splits),
        sums={name: np.sum([split.sums[name] for split in splits], axis=0).tolist() for name in splits[0].sums},
    )


def _stamps(paths: Iterable[str]) -> dict[str, tuple[str, int, int]]:
    """Of each file what changes when it does: its name, size and time."""
    return {path: (path, status.st_size, status.st_mtime_ns) for path, status in statuses(paths).items()}


def _split_rule(split: config.Split) -> str:
    if split.by == "hash":
        shares = ", ".join(f"{name} {fraction:.0%}" for name, fraction in split.fractions.items())
        return f"by a hash of the group key: {shares} (seed {split.seed})"
    return "by the corpus's own files" if split.by == "corpus" else "none: all rows in one split"


def _module(run: config.Run) -> ModuleType:
    name: str = run.dataset.name  # type: ignore[attr-defined]
    return lookup.load("dataset", name)
