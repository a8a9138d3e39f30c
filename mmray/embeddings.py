"""Stored embeddings: what a model's classifier reads of every row, as `mmray embed` writes it; and their neighbours.

    runs/<name>/predictions/embeddings/
        train/embeddings.json         run, checkpoint, rows, columns, names of the classes
        train/part-00000.parquet ...  id, group and labels where the dataset has them, embedding (E,)
        val/ ...

Rows stand in the split's order; those that the model had nothing to look at of are left out, and counted.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from mmray.prepared import tensor_column
from mmray.schema import Column
from mmray.storage import record_batches

FILE = "embeddings.json"
FOLDER = Path("predictions", "embeddings")  # of a run folder
DType = Literal["float16", "float32"]


class EmbeddingsInfo(BaseModel):
    """`embeddings.json`: of one split. `rows` are those of the split, of which `left_out` are not stored."""

    model_config = ConfigDict(extra="forbid")

    run: str
    dataset: str
    split: str
    step: int
    rows: int
    left_out: int
    class_names: list[str]
    columns: list[Column]

    @property
    def stored(self) -> int:
        """Rows that are stored."""
        return self.rows - self.left_out


def columns_of(there: Sequence[Column], size: int, dtype: DType) -> list[Column]:
    """The columns stored of a dataset with the columns `there`, for embeddings of `size` (E) numbers."""
    carried = [column for column in there if column.name in ("id", "group", "labels")]
    return [*carried, Column(name="embedding", dtype=dtype, shape=(size,))]


def read_info(folder: Path) -> EmbeddingsInfo:
    """Read `embeddings.json` of a split; ValueError where it is of another version."""
    try:
        return EmbeddingsInfo.model_validate(json.loads((folder / FILE).read_text()))
    except ValueError as error:
        raise ValueError(f"{folder / FILE}: damaged or of another version: {error}; embed again") from None


def splits_of(path: Path) -> dict[str, Path]:
    """The folders of embedded splits by name, of a run folder, of the folder of its embeddings, or of one split.

    ValueError where there is none.
    """
    for root in (path, path / FOLDER):
        found = [root, *(folder for folder in root.glob("*") if not folder.name.startswith("."))]
        folders = sorted(folder for folder in found if (folder / FILE).is_file())
        if folders:
            return {read_info(folder).split: folder for folder in folders}
    raise ValueError(f"{path} holds no embeddings; make them with mmray embed RUN, and name that run's folder")


def files_of(folder: Path) -> list[Path]:
    """The Parquet files of a split, in the order of its rows."""
    return sorted(folder.glob("part-*.parquet"))


def read_tables(folder: Path, columns: Sequence[str], batch_rows: int = 8192) -> Iterator[pa.Table]:
    """Columns of an embedded split, a bounded number of rows at a time; ValueError where rows are missing."""
    info, rows = read_info(folder), 0
    for path in files_of(folder):
        for batch in record_batches(path, batch_rows, list(columns)):
            rows += batch.num_rows
            yield pa.Table.from_batches([batch])
    if rows != info.stored:
        raise ValueError(f"{folder} should hold {info.stored:,} rows and holds {rows:,}; embed again")


@dataclass(frozen=True, order=True)
class Neighbour:
    """A row near another one; `labels` are the names of its classes."""

    cosine: float
    id: str
    split: str
    labels: tuple[str, ...]


def neighbours(path: Path, id: str, k: int = 10, splits: Sequence[str] = ()) -> tuple[Neighbour, list[Neighbour]]:
    """The row `id`, and of all others the k with the largest cosine to its embedding, best first.

    Exact: every stored row of `splits` (default: all) is compared, a block at a time. Rows of equal cosine go by id. A
    row whose embedding is 0 has cosine 0. ValueError where the id is not there, or its embedding is 0.
    """
    there = splits_of(path)
    if unknown := [name for name in splits if name not in there]:
        raise ValueError(f"{path} has no embeddings of split {unknown[0]!r}; it has {', '.join(there)}")
    query = _embedding_of(there, id)
    norm = float(np.linalg.norm(query))
    if not norm:
        raise ValueError(f"the embedding of {id!r} is 0: it has no direction, and so no neighbours")
    itself = Neighbour(1.0, id, "", ())
    best: list[tuple[float, str, Neighbour]] = []
    for split in splits or there:
        names = read_info(there[split]).class_names
        for table, block in _blocks(there[split]):
            norms = np.linalg.norm(block, axis=1)
            cosines = (block @ query / np.where(norms > 0, norms * norm, 1)).clip(-1, 1)
            near = np.argpartition(-cosines, min(k, len(cosines) - 1))[: k + 1]  # one of them may be the row itself
            for row in np.flatnonzero(cosines >= cosines[near].min()) if len(near) else ():
                found = _neighbour(table, int(row), float(cosines[row]), split, names)
                if found.id == id:
                    itself = found
                else:
                    best.append((-found.cosine, found.id, found))
        best = heapq.nsmallest(k, best)
    return itself, [found for _, _, found in best]


def _embedding_of(there: dict[str, Path], id: str) -> npt.NDArray[np.float32]:
    for folder in there.values():
        for table, block in _blocks(folder):
            place = table.column("id").index(id).as_py()
            if place >= 0:
                found: npt.NDArray[np.float32] = block[place]
                return found
    rows = sum(read_info(folder).stored for folder in there.values())
    raise ValueError(f"no row {id!r} among the {rows:,} that are embedded, of {', '.join(there)}")


def _blocks(folder: Path) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
    """Ids and labels of some rows, and their embeddings (n, E) float32."""
    columns = [column.name for column in read_info(folder).columns if column.name != "group"]
    for table in read_tables(folder, columns):
        yield table, tensor_column(table, "embedding").astype(np.float32)


def _neighbour(table: pa.Table, row: int, cosine: float, split: str, names: Sequence[str]) -> Neighbour:
    labels = table.column("labels")[row].as_py() if "labels" in table.column_names else []
    return Neighbour(cosine, table.column("id")[row].as_py(), split, tuple(names[label] for label in labels))
