"""The columns that stages pass to one another: name, element type, shape, unit.

Arrow storage of a column, by its shape:

| shape            | Arrow type                             | example                                            |
|------------------|----------------------------------------|----------------------------------------------------|
| `()`             | the scalar type; bytes: `large_binary` | id, num_frames, an encoded image                   |
| `(D,)`, ...      | `pa.fixed_shape_tensor`                | mean_rgb: one vector a row                         |
| `(None,)`        | `pa.list_` of the scalar type          | labels: any number a row                           |
| `(None, D)`, ... | `pa.large_binary`: row-major bytes     | cfp: any number of frames a row, each of D numbers |
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

DType = Literal["string", "bytes", "int32", "int64", "uint8", "int16", "float16", "float32", "float64"]

_ARROW = {
    "string": pa.string(),
    "bytes": pa.large_binary(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "int16": pa.int16(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
}


class Column(BaseModel):
    """One column of a table between stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dtype: DType
    shape: tuple[int | None, ...] = ()
    unit: str = ""

    def arrow_type(self) -> pa.DataType:
        """The Arrow type this column is stored as; ValueError for a shape that no stage uses."""
        scalar = _ARROW[self.dtype]
        if self.shape == ():
            return scalar
        if all(size is not None for size in self.shape):
            return pa.fixed_shape_tensor(scalar, self.shape)
        if self.shape == (None,):
            return pa.list_(scalar)
        if (
            self.shape[0] is None
            and all(size is not None for size in self.shape[1:])
            and self.dtype not in ("string", "bytes")
        ):
            return pa.large_binary()
        raise ValueError(f"column {self.name!r}: no storage for {self.dtype} of shape {self.shape}")


def is_feature(column: Column) -> bool:
    """Whether a column holds what a model computes on: vectors, frames or encoded files, not ids, labels and counts."""
    return column.dtype == "bytes" or len(column.shape) > 1 or (len(column.shape) == 1 and column.shape[0] is not None)


def arrow_schema(columns: list[Column]) -> pa.Schema:
    """The Arrow schema of a table with these columns, in this order."""
    return pa.schema([pa.field(c.name, c.arrow_type()) for c in columns])


class FileInfo(BaseModel):
    """One Parquet file of a prepared split: path relative to the dataset folder, and rows of each row group."""

    path: str
    row_groups: list[int]


MAX_GROUPS = 10_000


class SplitInfo(BaseModel):
    """One split of a prepared dataset.

    `num_bytes` is its size in memory, `labelled_rows` how many rows have a label, `groups` what no other split should
    share (tracks, singers), sorted; None where there are more than `MAX_GROUPS`. Where labels are classes,
    `label_counts` has the rows of each and `max_labels` the most that a row has. `sums` are, over
    the rows, of the columns that the dataset names in `SUMMED`.
    """

    rows: int
    num_bytes: int
    files: list[FileInfo]
    labelled_rows: int = 0
    groups: list[str] | None = None
    label_counts: list[int] | None = None
    max_labels: int = 0
    sums: dict[str, list[float]] = {}


class DatasetInfo(BaseModel):
    """`dataset.json`: everything a later stage must know of a prepared dataset."""

    model_config = ConfigDict(extra="forbid")

    id: str
    columns: list[Column]
    class_names: list[str]
    splits: dict[str, SplitInfo]
    split_rule: str
    group_key: str
    rows_in: int
    rows_out: int
    rejected: int
    rejected_reasons: dict[str, int]

    def column(self, name: str) -> Column:
        """The column called `name`; ValueError with the choices when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise ValueError(f"prepared dataset {self.id} has no column {name!r}; it has {[c.name for c in self.columns]}")

    def split(self, name: str) -> SplitInfo:
        """The split called `name`; ValueError with the choices when there is none or it is empty."""
        info = self.splits.get(name)
        if info is None or info.rows == 0:
            full = [n for n, s in self.splits.items() if s.rows]
            raise ValueError(f"prepared dataset {self.id} has no rows in split {name!r}; it has {full}")
        return info
