"""Tables of what people wrote about videos: read once, then looked up by id from memory-mapped files.

A table is CSV, TSV, JSON lines or Parquet, the first three also compressed by gzip. Reading holds a piece of a few MB,
the ids and 24 bytes for each of them.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
from pydantic import Field

from mmray.config import Section
from mmray.features.id_table import DuplicateIdError, IdTable
from mmray.files import locked, write_json, written_folder
from mmray.storage import at, fetched, on_this_node, open_parquet, record_batches, statuses

Int64s = npt.NDArray[np.int64]
Duplicates = Literal["refuse", "last"]

_NOTE = "table.json"
_FORMAT = 1  # of what is made once; part of every name
_ROWS = pa.schema([("id", pa.large_string()), ("title", pa.large_string()), ("keywords", pa.large_string())])


class TextColumns(Section):
    """Names of the table's columns; null for one that it does not have."""

    id: str = "id"
    title: str | None = "title"
    keywords: str | None = Field("keywords", description="text, however parted, or a list of texts")


@dataclass(frozen=True, eq=False)
class TextTable:
    """Titles and keywords of the ids of a table, memory-mapped."""

    ids: IdTable
    _pieces: tuple[pa.RecordBatch, ...]
    _starts: Int64s

    @classmethod
    def made(cls, paths: Sequence[Path], names: TextColumns, duplicates: Duplicates, cache: str) -> TextTable:
        """The rows of these files together, read into the folder `cache` unless they are there already."""
        folder = at(cache) / f"text-{digest([names.model_dump(), duplicates, *stamps(map(str, paths))])}"
        if not (folder / _NOTE).exists():
            with locked(folder.with_name(f".{folder.name}.lock"), f"reading {paths[0]}", wait=True):
                if not (folder / _NOTE).exists():  # the other process may have made it
                    _write_table(paths, names, duplicates, folder)
        folder = on_this_node(folder)
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow")))
        pieces = tuple(reader.get_batch(i) for i in range(reader.num_record_batches))
        starts = np.cumsum([0, *(piece.num_rows for piece in pieces)], dtype=np.int64)
        return cls(IdTable.open(folder / "ids.arrow"), pieces, starts)

    def take(self, rows: Int64s) -> tuple[list[str], list[str]]:
        """Titles and keywords of rows (n,); "" for row -1."""
        titles, keywords = [""] * len(rows), [""] * len(rows)
        piece_of = np.searchsorted(self._starts, rows, side="right") - 1
        for piece in np.unique(piece_of[rows >= 0]):
            places = np.flatnonzero(piece_of == piece)
            found = self._pieces[piece].take(pa.array(rows[places] - self._starts[piece]))
            for place, row in zip(places.tolist(), found.to_pylist(), strict=True):
                titles[place], keywords[place] = row["title"], row["keywords"]
        return titles, keywords


def _write_table(paths: Sequence[Path], names: TextColumns, duplicates: Duplicates, folder: Path) -> None:
    ids: list[pa.Array] = []
    kept = pa.schema([_ROWS.field("title"), _ROWS.field("keywords")])
    try:
        with written_folder(folder) as aside:
            with pa.OSFile(str(aside / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, kept) as writer:
                for path in paths:
                    for piece in _read_table(path, names):
                        if missing := piece.column("id").null_count:
                            raise ValueError(f"{path}: {missing:,} rows have no {names.id!r}")
                        ids.append(piece.column("id"))
                        writer.write_batch(piece.select(["title", "keywords"]))
            IdTable.build(aside / "ids.arrow", ids, duplicates)
            write_json(aside / _NOTE, {"files": [str(path) for path in paths], "rows": sum(map(len, ids))})
    except DuplicateIdError as error:
        raise ValueError(f"{paths[0]}: {error}; mend it, or set dataset.text.duplicates: last") from None


def _read_table(path: Path, names: TextColumns) -> Iterator[pa.RecordBatch]:
    """Pieces of a table as strings: id, title, keywords. ValueError where it can't be read or lacks a column."""
    suffix = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    readers = {"csv": _csv, "tsv": _csv, "jsonl": _jsonl, "parquet": _parquet}
    if suffix not in readers:
        raise ValueError(f"{path}: no table that is known; it must end in {', '.join(readers)}")
    wanted = [name for name in (names.id, names.title, names.keywords) if name is not None]
    try:
        for piece in readers[suffix](path, wanted):
            arrays = []
            for name in (names.id, names.title, names.keywords):
                values = pa.nulls(piece.num_rows, pa.large_string()) if name is None else _strings(piece.column(name))
                arrays.append(values if name == names.id else values.fill_null(""))
            yield pa.RecordBatch.from_arrays(arrays, schema=_ROWS)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from None


def _strings(values: pa.Array) -> pa.Array:
    """Values as text; those of a list one after another."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return pa.array([None if v is None else " ".join(map(str, v)) for v in values.to_pylist()], pa.large_string())
    return values.cast(pa.large_string())


def _require_columns(path: Path, wanted: Sequence[str], there: Sequence[str]) -> None:
    for name in wanted:
        if name not in there:
            raise ValueError(
                f"{path} has no column {name!r}; it has {', '.join(there)}: set dataset.text.columns, null for one "
                "that is not there"
            )


def _csv(path: Path, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with fetched(path) as here:
        with pa.input_stream(str(here)) as file:
            first = file.read(1 << 16).decode("utf-8-sig", errors="replace").splitlines()
            _require_columns(path, wanted, next(csv.reader(first[:1], delimiter=delimiter), []))
        yield from pa.csv.open_csv(
            str(here),
            pa.csv.ReadOptions(block_size=4 << 20),
            pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(wanted, pa.large_string()), include_columns=wanted, null_values=[]
            ),
        )


def _jsonl(path: Path, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    def plain(value: Any) -> str | None:
        return " ".join(map(str, value)) if isinstance(value, list) else None if value is None else str(value)

    lines = _objects(path)
    while piece := list(itertools.islice(lines, 1 << 16)):
        _require_columns(path, wanted, sorted({key for row in piece for key in row}))
        yield pa.RecordBatch.from_pylist(
            [{name: plain(row.get(name)) for name in wanted} for row in piece],
            schema=pa.schema([(name, pa.large_string()) for name in wanted]),
        )


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stored, gzip.open(stored) if path.suffix == ".gz" else stored as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: no object, but {str(row)[:40]!r}")
            if line.strip():
                yield row


def _parquet(path: Path, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as file:
        _require_columns(path, wanted, file.schema_arrow.names)
    yield from record_batches(path, 1 << 16, wanted)


def stamps(paths: Iterable[str]) -> list[list[Any]]:
    """Of each file what changes when it does: its name, size and time."""
    paths = list(paths)
    found = statuses(paths)
    return [[path, found[path].st_size, found[path].st_mtime_ns] for path in paths]


def digest(identity: Sequence[Any]) -> str:
    """A name for what depends on plain values."""
    return hashlib.sha256(json.dumps([_FORMAT, *identity]).encode()).hexdigest()[:12]
