"""What files a corpus has: a folder with a folder per class, or a table of files; and which of them are copies."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from mmray import storage
from mmray.config import Section

TABLES = (".csv", ".tsv", ".parquet")


class Columns(Section):
    """Names of a table's columns."""

    path: str = Field("path", description="the file, relative to the table's folder")
    label: str = Field("label", description="the class; empty: unlabelled")
    group: str | None = Field(None, description="what must not stand in two splits; default: each file by itself")


@dataclass(frozen=True)
class Listed:
    """One file, as the corpus lists it.

    `id` is its path there, `group` what the corpus says that it belongs to ("": nothing), `where` what lists it, for
    errors.
    """

    path: Path
    id: str
    group: str
    label: str | None
    where: str


def in_folders(root: Path, accepts: Callable[[str], bool]) -> list[Listed]:
    """Every file below `root` whose name is accepted; its class is the folder directly below `root`.

    Hidden files and folders are passed over. ValueError for a link to nothing.
    """
    found = []
    for path in storage.files_below(root):
        if not accepts(path.name):
            continue
        if not path.is_file():
            raise ValueError(f"{path} is a link to nothing; bring the file, or remove the link")
        place = path.relative_to(root)
        label = place.parts[0] if len(place.parts) > 1 else None
        found.append(Listed(path, place.as_posix(), "", label, f"folder {label or root}"))
    return found


def empty_folders(root: Path, found: Sequence[Listed]) -> list[str]:
    """Names of the folders directly below `root` that none of the found files is in."""
    labels = {file.label for file in found}
    return sorted(f.name for f in root.iterdir() if f.is_dir() and f.name[0] != "." and f.name not in labels)


def in_table(table: Path, wanted: Columns, label_required: bool) -> list[Listed]:
    """Every file that a table names; ValueError where a column or file is missing, or a name or group is empty."""
    names, rows = read_table(table)
    needed = [("path", wanted.path), *([("group", wanted.group)] if wanted.group else [])]
    if label_required or wanted.label in names:
        needed.append(("label", wanted.label))
    for key, name in needed:
        if name not in names:
            raise ValueError(
                f"{table}: no column {name!r}, which dataset.columns.{key} names; it has {', '.join(names)}; "
                f"set dataset.columns: {{{key}: ...}}"
            )
    found, missing = [], []
    for number, row in enumerate(rows, 2 if table.suffix.lower() != ".parquet" else 0):
        where = f"{table}, {'row' if table.suffix.lower() == '.parquet' else 'line'} {number}"
        name = row[wanted.path]
        if not name:
            raise ValueError(f"{where}: column {wanted.path!r} is empty; name a file or remove the line")
        path = table.parent / name
        if not path.is_file():
            missing.append(f"{where}: {path}")
        group = row[wanted.group] if wanted.group else ""
        if wanted.group and not group:
            raise ValueError(f"{where}: column {wanted.group!r} is empty; say what {name} belongs to")
        found.append(Listed(path, Path(name).as_posix(), group, row.get(wanted.label) or None, where))
    if missing:
        raise ValueError(
            f"{len(missing):,} of {len(found):,} files of {table} are missing; the first is {missing[0]}; "
            "paths are relative to the table's folder: bring the files, or remove their lines"
        )
    return found


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Column names and rows of a table, all values as text without blanks around, "" for none."""
    try:
        if path.suffix.lower() == ".parquet":
            table = storage.read_table(path)
            values = {name: [_text(v) for v in table.column(name).to_pylist()] for name in table.column_names}
            return table.column_names, [
                dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)
            ]
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            names = [_text(name) for name in next(reader, [])]
            rows = []
            for row in reader:
                if row and len(row) != len(names):
                    raise ValueError(f"line {reader.line_num}: {len(row)} values for {len(names)} columns")
                if row:
                    rows.append(dict(zip(names, map(_text, row), strict=True)))
            return names, rows
    except (csv.Error, UnicodeDecodeError, pa.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: not a table that can be read: {error}") from None


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def check_names(files: Iterable[Listed]) -> None:
    """ValueError where two files have one id."""
    names: dict[str, Listed] = {}
    for file in files:
        if (other := names.setdefault(file.id, file)) is not file:
            raise ValueError(
                f"{file.path} ({file.where}) and {other.path} ({other.where}) have one name, {file.id!r}; "
                "rename or remove one of them"
            )


def vocabulary(given: Sequence[str] | None, files: Iterable[Listed]) -> list[str]:
    """`given`, or the classes of the files, sorted; ValueError for a file of a class that is not among those given."""
    firsts: dict[str, Listed] = {}
    for file in files:
        if file.label is not None:
            firsts.setdefault(file.label, file)
    if given is None:
        return sorted(firsts)
    if unknown := sorted(firsts.keys() - set(given)):
        first = firsts[unknown[0]]
        raise ValueError(
            f"{first.path} ({first.where}) is of class {unknown[0]!r}, which is not among "
            f"dataset.classes={list(given)}; add it there, or remove the file"
        )
    return list(given)


def same_content(files: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Files that are equal byte by byte. Most are told apart by size, nearly all others by a piece of their middle."""
    alike: list[list[Listed]] = [list(files)]
    for key in (lambda p: p.stat().st_size, _digest_of_middle, _digest):
        found = []
        for group in alike:
            by_key: dict[object, list[Listed]] = defaultdict(list)
            for file in group:
                by_key[key(file.path)].append(file)
            found += [same for same in by_key.values() if len(same) > 1]
        alike = found
    yield from alike


def _digest_of_middle(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(path.stat().st_size // 2)
        return hashlib.blake2b(file.read(1 << 12)).digest()


def _digest(path: Path) -> bytes:
    status = path.stat()
    return _digest_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _digest_of(path: Path, num_bytes: int, mtime_ns: int) -> bytes:
    """SHA-256 of a file as long as it is the same file: a corpus is listed several times in a run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
