"""Stored predictions: Parquet, one row of the predicted split a row, in its order, with its id.

    runs/<name>/predictions/test/
        predictions.json       split, checkpoint, rows, columns
        part-00000.parquet ...

Which columns there are is the task's choice: see `prediction_columns` of `mmray.tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from mmray.schema import Column, arrow_schema
from mmray.storage import record_batches


class PredictionsInfo(BaseModel):
    """`predictions.json`."""

    model_config = ConfigDict(extra="forbid")

    run: str
    dataset: str
    split: str
    step: int
    rows: int
    labelled: bool
    columns: list[Column]

    def require_labels(self, folder: Path) -> None:
        """ValueError naming the folder where its rows have no labels."""
        if not self.labelled:
            raise ValueError(f"{folder} has predictions without labels: there is nothing to compare them with")


def read_info(folder: Path) -> PredictionsInfo:
    """Read `predictions.json`; ValueError where there is none or it is of another version."""
    path = folder / "predictions.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no predictions; make them with mmray predict")
    try:
        return PredictionsInfo.model_validate(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: damaged or of another version: {error}; remove {folder} and predict again") from None


def read_tables(folder: Path, batch_rows: int = 8192, leave_out: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The predictions, a bounded number of rows at a time, without the columns `leave_out`.

    ValueError where they are not as many as they should be.
    """
    info, rows = read_info(folder), 0
    columns = [column.name for column in info.columns if column.name not in leave_out]
    for path in sorted(folder.glob("part-*.parquet")):
        for batch in record_batches(path, batch_rows, columns):
            rows += batch.num_rows
            yield pa.Table.from_batches([batch])
    if rows != info.rows:
        raise ValueError(f"{folder} should hold {info.rows:,} rows and holds {rows:,}; predict again")


def open_writer(path: Path, columns: list[Column]) -> pq.ParquetWriter:
    """A writer of stored predictions. Bytes are scores: noise to a compressor, and plain they are read much faster."""
    schema = arrow_schema(columns)
    plain = {field.name for field in schema if pa.types.is_large_binary(field.type)}
    leaves = [column.name for column in columns if column.name not in plain]
    return pq.ParquetWriter(
        path,
        schema,
        use_dictionary=leaves if leaves else False,
        compression={name: "none" if name in plain else "snappy" for name in schema.names},
        write_statistics=False,
    )
