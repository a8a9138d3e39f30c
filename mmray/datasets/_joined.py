"""Vectors that other runs made of the same items, joined to a corpus's rows by id.

    dataset:
      name: youtube8m
      joined:
        - {path: runs/youtube8m-title-text-cnn, name: title_vector, size: 4096}

`path` is where `mmray embed` has stored embeddings: a run folder, or one split's. The vector becomes a column under the
name given, and `has_<name>` says whether there is one; a row without any has zeros.

Made once, in the folder `cache`, under a name that is a hash of what it depends on: `ids.arrow` (see
`mmray.features.id_table`) and a matrix (N, D), which every task maps. Rows of a corpus and of what was embedded of it
stand in about the same order, so that little is read twice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, PositiveInt

from mmray import embeddings
from mmray.config import Section
from mmray.datasets._text_table import digest, stamps
from mmray.embeddings import DType
from mmray.features.id_table import DuplicateIdError, IdTable
from mmray.files import locked, write_json, written_folder
from mmray.prepared import tensor_column
from mmray.schema import Column
from mmray.storage import at, on_this_node

Key = Literal["id", "group"]
Matrix = npt.NDArray[np.floating[Any]]
_NOTE = "vectors.json"


class Joined(Section):
    """Where vectors are, and what they are called here."""

    path: str = Field(description="a run folder that mmray embed has worked on, or the folder of one of its splits")
    name: str = Field(description="of the column, for model.inputs", pattern=r"^[A-Za-z]\w*$")
    size: PositiveInt | None = Field(None, description="numbers in a vector, which must be so; default: as they are")
    dtype: DType = Field("float32", description="as they are prepared")
    key: Key = Field("id", description="what ids are looked up in; group: a row is the mean of all rows of a group")
    cache: str = Field("prepared/joined", description="folder for what is made once, on storage that every node sees")

    @functools.cached_property
    def splits(self) -> dict[str, Path]:
        """The folders of the embedded splits; ValueError where there is none."""
        return embeddings.splits_of(at(self.path))

    @functools.cached_property
    def info(self) -> embeddings.EmbeddingsInfo:
        """What all splits have in common; ValueError where they are of different checkpoints."""
        infos = [embeddings.read_info(folder) for folder in self.splits.values()]
        for info in infos[1:]:
            if (info.run, info.step, info.columns) != (infos[0].run, infos[0].step, infos[0].columns):
                raise ValueError(
                    f"{self.path}: split {info.split!r} was embedded by {info.run} at step {info.step}, split "
                    f"{infos[0].split!r} by {infos[0].run} at step {infos[0].step}; embed all splits anew"
                )
        return infos[0]

    def columns(self) -> list[Column]:
        """The vector, and whether there is one."""
        vector = Column(name=self.name, dtype=self.dtype, shape=(self.size or self.stored_size(),))
        return [vector, Column(name=f"has_{self.name}", dtype="uint8")]

    def stored_size(self) -> int:
        """D; ValueError where `size` or `key` do not fit what is stored."""
        size = self.info.columns[-1].shape[0] or 0
        if self.size not in (None, size):
            raise ValueError(f"dataset.joined: {self.name}: size={self.size}, but {self.path} has vectors of {size}")
        if self.key == "group" and all(column.name != "group" for column in self.info.columns):
            raise ValueError(f"dataset.joined: {self.name}: the rows of {self.path} are in no groups; leave key out")
        return size

    def companions(self) -> tuple[str, ...]:
        """The files that rows depend on."""
        return tuple(str(path) for folder in self.splits.values() for path in _files(folder))

    def opened(self) -> Vectors:
        """The vectors by id, made in the cache unless they are there."""
        return _opened(self.model_dump_json(), tuple(map(tuple, stamps(self.companions()))))


@dataclass(frozen=True, eq=False)
class Vectors:
    """N keys with a vector (D,) each; `splits` (N,) says of which of `split_names` each was, by number."""

    ids: IdTable
    matrix: Matrix  # (N, D), mapped
    splits: npt.NDArray[np.uint8]
    split_names: tuple[str, ...]

    def take(self, ids: pa.Array) -> tuple[Matrix, npt.NDArray[np.bool_]]:
        """The vectors of these ids (n, D), zeros where there is none, and where there is one (n,)."""
        rows = self.ids.rows_of(ids)
        found = rows >= 0
        vectors = np.zeros((len(rows), self.matrix.shape[1]), self.matrix.dtype)
        vectors[found] = self.matrix[rows[found]]
        return vectors, found


def columns(joined: Sequence[Joined]) -> list[Column]:
    """What rows get. ValueError where two columns have one name."""
    found = [column for each in joined for column in each.columns()]
    names = [column.name for column in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"dataset.joined: two columns are called {twice[0]!r}; give each vector a name of its own")
    return found


class Join:
    """All joined vectors, opened; they are put in order first where they are not yet."""

    def __init__(self, joined: Sequence[Joined]) -> None:
        self._parts = [(each, each.opened()) for each in joined]

    def columns_of(self, ids: pa.Array) -> list[pa.Array]:
        """The columns that `columns` announces, of rows with these ids; ValueError for numbers beyond `dtype`."""
        arrays: list[pa.Array] = []
        for each, there in self._parts:
            vectors, found = there.take(ids)
            if np.abs(vectors).max(initial=0) > np.finfo(each.dtype).max:
                raise ValueError(f"dataset.joined: {each.name} has numbers beyond {each.dtype}; set dtype: float32")
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(vectors.astype(each.dtype, copy=False)))
            arrays.append(pa.array(found.astype(np.uint8)))
        return arrays


def _files(folder: Path) -> list[Path]:
    return [folder / embeddings.FILE, *embeddings.files_of(folder)]


@functools.lru_cache(maxsize=8)
def _opened(values: str, versions: tuple[tuple[str | int, ...], ...]) -> Vectors:
    joined = Joined.model_validate_json(values)
    size = joined.stored_size()
    folder = at(joined.cache) / f"vectors-{digest([joined.key, *versions])}"
    if not (folder / _NOTE).exists():
        with locked(folder.with_name(f".{folder.name}.lock"), f"reading {joined.path}", wait=True):
            if not (folder / _NOTE).exists():  # the other process may have made it
                _write(joined, size, folder)
    folder = on_this_node(folder)
    ids, matrix = IdTable.open(folder / "ids.arrow"), np.load(folder / "vectors.npy", mmap_mode="r")
    return Vectors(ids, matrix, np.load(folder / "splits.npy"), tuple(joined.splits))


def _write(joined: Joined, size: int, folder: Path) -> None:
    try:
        with written_folder(folder) as aside:
            keys, splits = _keys(joined)
            ids = IdTable.build(aside / "ids.arrow", keys)
            np.save(aside / "splits.npy", splits)
            dtype = np.dtype(joined.info.columns[-1].dtype)
            matrix = np.lib.format.open_memmap(aside / "vectors.npy", "w+", dtype, (len(ids), size))
            _fill(matrix, joined, ids)
            matrix.flush()
            write_json(aside / _NOTE, {"path": joined.path, "vectors": len(ids), "size": size})
    except DuplicateIdError as error:
        raise ValueError(f"dataset.joined: {joined.path}: {error}; was one item embedded in two splits?") from None


def _keys(joined: Joined) -> tuple[list[pa.Array], npt.NDArray[np.uint8]]:
    """The keys in the order of the stored rows, a group once, and the split of each: the first that has it."""
    keys: list[pa.Array] = []
    splits: list[int] = []
    seen: set[str] = set()
    for number, folder in enumerate(joined.splits.values()):
        for table in embeddings.read_tables(folder, [joined.key]):
            piece = table.column(joined.key).combine_chunks()
            if joined.key == "group":
                new = dict.fromkeys(key for key in piece.to_pylist() if key not in seen)
                seen.update(new)
                piece = pa.array(list(new), pa.string())
            keys.append(piece)
            splits += [number] * len(piece)
    return keys, np.array(splits, np.uint8)


def _fill(matrix: Matrix, joined: Joined, ids: IdTable) -> None:
    """The vectors by row of `ids`: as they are stored, or the means over groups."""
    total = np.zeros(matrix.shape, np.float64) if joined.key == "group" else None
    counts = np.zeros(len(ids), np.int64)
    for folder in joined.splits.values():
        for table in embeddings.read_tables(folder, [joined.key, "embedding"]):
            rows = ids.rows_of(table.column(joined.key).combine_chunks())
            vectors = tensor_column(table, "embedding")
            if total is None:
                matrix[rows] = vectors
            else:
                np.add.at(total, rows, vectors)
                counts += np.bincount(rows, minlength=len(ids))
    if total is not None:
        matrix[:] = total / np.maximum(counts, 1)[:, None]
