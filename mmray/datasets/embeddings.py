"""Rows made of nothing but vectors that other runs have made of the same items: where tasks are fused.

    dataset:
      name: embeddings
      path: runs/covers
      key: group
      joined:
        - {path: runs/covers, key: group, name: cover}
        - {path: runs/sound, key: group, name: sound}

The rows are those that the run `path` has embedded (`mmray embed`), with its labels and in its splits; with `key:
group` one row for each of its groups. What one of `joined` knows nothing of has zeros there, and `has_<name>` 0: see
`_joined`. An item that stood in another split there was perhaps trained on; the report of the splits counts those.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmray import embeddings
from mmray.config import Section
from mmray.datasets import Reject, Rejected, Source, _joined
from mmray.datasets._joined import Join, Joined, Key
from mmray.schema import Column, arrow_schema
from mmray.storage import at, record_batches

GROUP_KEY = "id"
LABEL_KEY = "labels"
BATCH_ROWS = 4096


class Config(Section):
    """Which rows, and which vectors."""

    name: Literal["embeddings"] = "embeddings"
    path: str = Field(
        description="a run folder that mmray embed has worked on: whose rows, labels and splits these are"
    )
    key: Key = Field("id", description="what a row here stands for: a row there, or a group of them")
    joined: tuple[Joined, ...] = Field(min_length=1)
    classes: tuple[str, ...] | None = Field(None, description="all classes in order, which must be those of the run")


def sources(config: Config) -> list[Source]:
    """One file of embeddings each; with `key: group` one split each, for its rows may stand anywhere in it."""
    companions = tuple(name for each in config.joined for name in each.companions())
    names = _class_names(config.path)
    if config.classes not in (None, names):
        raise ValueError(f"dataset.classes={list(config.classes or ())}, but those of {config.path} are {list(names)}")
    found = []
    for split, folder in sorted(embeddings.splits_of(at(config.path)).items()):
        if all(column.name != LABEL_KEY for column in embeddings.read_info(folder).columns):
            raise ValueError(f"dataset.path={config.path!r}: its rows have no labels of classes; name another run")
        files = embeddings.files_of(folder)
        where = split if split in ("train", "val", "test") else None
        if config.key == "group":
            num_bytes = sum(file.stat().st_size for file in files)
            others = tuple(str(file) for file in files)
            found.append(Source(str(folder / embeddings.FILE), where, num_bytes, (*others, *companions)))
        else:
            found += [Source(str(file), where, file.stat().st_size, companions) for file in files]
    return found


def columns(config: Config) -> list[Column]:
    """id, labels, then each vector and whether there is one."""
    own = [Column(name="id", dtype="string"), Column(name=LABEL_KEY, dtype="int32", shape=(None,), unit="class")]
    return own + _joined.columns(config.joined)


def class_names(config: Config) -> list[str]:
    """Those of the run `path`; `classes`, where they are given, are compared with them by `sources`."""
    return list(config.classes or _class_names(config.path))


def _class_names(path: str) -> tuple[str, ...]:
    (folder, *_) = embeddings.splits_of(at(path)).values()
    return tuple(embeddings.read_info(folder).class_names)


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source. A group whose rows have different labels is rejected."""
    join, schema = Join(config.joined), arrow_schema(columns(config))
    rows = _groups(at(source.path), reject) if config.key == "group" else _rows(at(source.path))
    for ids, labels in rows:
        arrays = [ids, labels.cast(schema.field(LABEL_KEY).type), *join.columns_of(ids)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _rows(file: Path) -> Iterator[tuple[pa.Array, pa.Array]]:
    for batch in record_batches(file, BATCH_ROWS, ["id", LABEL_KEY]):
        yield batch.column("id"), batch.column(LABEL_KEY)


def _groups(info: Path, reject: Reject) -> Iterator[tuple[pa.Array, pa.Array]]:
    labels: dict[str, set[tuple[int, ...]]] = {}
    for table in embeddings.read_tables(info.parent, ["group", LABEL_KEY]):
        for group, of_row in zip(table.column("group").to_pylist(), table.column(LABEL_KEY).to_pylist(), strict=True):
            labels.setdefault(group, set()).add(tuple(of_row))
    for group, found in labels.items():
        if len(found) > 1:
            reject(Rejected(str(info.parent), f"rows of group {group} have different labels"))
    kept: dict[str, list[int]] = {group: list(*found) for group, found in labels.items() if len(found) == 1}
    names = list(kept)
    for start in range(0, len(names), BATCH_ROWS):
        piece = names[start : start + BATCH_ROWS]
        yield pa.array(piece), pa.array([kept[name] for name in piece], pa.list_(pa.int32()))


def split_report(config: Config) -> str:
    """How many rows of val and test have each vector, and how many of these stood in train where it was made."""
    lines = []
    for split, folder in sorted(embeddings.splits_of(at(config.path)).items()):
        tables = list(embeddings.read_tables(folder, [config.key]))
        ids = pa.array(sorted({str(key) for table in tables for key in table.column(config.key).to_pylist()}))
        for each in config.joined:
            there = each.opened()
            rows = there.ids.rows_of(ids)
            found = there.splits[rows[rows >= 0]]
            line = f"{split}: {len(found):,} of {len(ids):,} rows have {each.name}"
            if split in ("val", "test") and "train" in there.split_names:
                leaked = int(np.count_nonzero(found == there.split_names.index("train")))
                line += f"; {leaked:,} of them were trained on there" + ("; scores flatter" if leaked else "")
            lines.append(line)
    return "\n".join(lines)
