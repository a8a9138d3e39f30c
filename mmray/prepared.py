"""A prepared dataset: Parquet files per split and `dataset.json`; and in which order its rows are read.

    prepared/youtube8m-3f2a91c07b5d/
        dataset.json          columns, class names, files, row groups, counts
        rejected.jsonl        every input that gave no row
        parts/                what each task of the preparation wrote
        train/part-00000.parquet ...

Row numbers count through a split in stored order: files as listed, row groups within them, rows within those.

The order of training is a pure function of (seed, epoch), stated over *global* batches, so that one worker, eight
workers and a resumed run see the same rows at the same step. A batch is drawn from `shuffle_lanes` places of a
newly shuffled sequence of row groups; each worker holds some of these lanes and reads little else.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mmray import config
from mmray.schema import Column, DatasetInfo, SplitInfo
from mmray.storage import open_parquet
from mmray.stores import steadily

Int64s = npt.NDArray[np.int64]


def read_info(folder: Path) -> DatasetInfo:
    """Read `dataset.json` of a prepared dataset; ValueError where there is none or it can't be read."""
    path = folder / "dataset.json"
    try:
        return DatasetInfo.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ValueError(f"{folder} is not a prepared dataset: it has no dataset.json; run mmray prepare") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged or of another version: {error}; remove {folder} and prepare again") from None


@dataclass(frozen=True)
class TrainOrder:
    """Which rows make up which global batch of one epoch.

    Every batch has exactly `batch_size` rows; the `rows % batch_size` rows left over at the end of the epoch's
    order are not used in this epoch, and are other ones in the next. Reading goes by windows of whole steps: rows of
    a window are mixed in memory.
    """

    row_groups: tuple[int, ...]
    batch_size: int
    seed: int
    epoch: int
    window_rows: int = 65536
    lanes: int = 16

    @functools.cached_property
    def num_rows(self) -> int:
        """Rows of the split."""
        return sum(self.row_groups)

    @functools.cached_property
    def num_steps(self) -> int:
        """Full batches in an epoch; ValueError when there is none."""
        if self.num_rows < self.batch_size:
            raise ValueError(
                f"train.batch_size={self.batch_size} is more than the {self.num_rows} training rows; lower it"
            )
        return self.num_rows // self.batch_size

    @functools.cached_property
    def steps_per_window(self) -> int:
        """Steps whose rows are read and mixed together."""
        return max(1, self.window_rows // self.batch_size)

    @functools.cached_property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        return -(-self.num_steps // self.steps_per_window)

    @functools.cached_property
    def _sequence(self) -> tuple[Int64s, Int64s, int]:
        """The epoch's order of row groups, where each ends in that order, and the row at which the epoch begins."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.row_groups))
        ends = np.cumsum(np.asarray(self.row_groups, np.int64)[order])
        return order, ends, int(rng.integers(self.num_rows))

    def rows(self, window: int, rank: int, world_size: int) -> Int64s:
        """Row numbers that `rank` of `world_size` workers takes in `window`: shape (steps, rows of the rank).

        Ranks are contiguous parts of the global batch, equal in size up to one row.
        """
        first, last = (rank * self.batch_size) // world_size, ((rank + 1) * self.batch_size) // world_size
        begin = window * self.steps_per_window
        steps = min(self.steps_per_window, self.num_steps - begin)
        lanes = min(self.lanes, self.batch_size)
        bounds = np.arange(lanes + 1) * self.batch_size // lanes  # of each lane within the batch
        parts = []
        for lane in range(lanes):
            low, high = int(bounds[lane]), int(bounds[lane + 1])
            if high <= first or low >= last:
                continue
            width = high - low
            mixed = np.random.default_rng([self.seed, self.epoch, lane, window]).permutation(steps * width)
            positions = self.num_steps * low + begin * width + mixed.reshape(steps, width)
            parts.append(positions[:, max(first - low, 0) : last - low])
        return self._stored(np.concatenate(parts, axis=1))

    def _stored(self, positions: Int64s) -> Int64s:
        """From positions in the epoch's order to stored row numbers."""
        order, ends, offset = self._sequence
        positions = (positions + offset) % self.num_rows
        place = np.searchsorted(ends, positions, side="right")
        starts = np.concatenate([[0], np.cumsum(self.row_groups)])[order]
        within = positions - (ends[place] - np.asarray(self.row_groups)[order][place])
        stored: Int64s = starts[place] + within
        return stored


def train_order(split: SplitInfo, train: config.Train, seed: int, epoch: int) -> TrainOrder:
    """The order of one epoch of a run over its training split."""
    row_bytes = max(1.0, split.num_bytes / max(1, split.rows))
    row_groups = tuple(rows for file in split.files for rows in file.row_groups)
    window_rows = max(1, int(train.shuffle_mb * 2**20 / row_bytes))
    return TrainOrder(row_groups, train.batch_size, seed, epoch, window_rows, train.shuffle_lanes)


def shard_of_rows(num_rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last-plus-one row of the part of a split that `rank` evaluates: every row in exactly one part."""
    return rank * num_rows // world_size, (rank + 1) * num_rows // world_size


@dataclass(frozen=True)
class SplitReader:
    """Reads rows of one split by number. Only the row groups that hold them are touched."""

    folder: Path
    split: SplitInfo
    columns: tuple[str, ...]

    @functools.cached_property
    def _groups(self) -> tuple[list[tuple[str, int]], Int64s]:
        """(file, row group in it) of every row group, and the row number at which each begins, plus the end."""
        places = [(f.path, g) for f in self.split.files for g in range(len(f.row_groups))]
        sizes = [rows for f in self.split.files for rows in f.row_groups]
        return places, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def take(self, rows: Int64s) -> pa.Table:
        """The rows with these numbers, shape (n,), in this order."""
        table, places = self.hold(rows)
        return table.take(pa.array(places))

    def hold(self, rows: Int64s) -> tuple[pa.Table, Int64s]:
        """The row groups that hold these rows, of any shape, as one table, and the places of the rows in it."""
        _, starts = self._groups
        group_of = np.searchsorted(starts, rows, side="right") - 1
        needed, order = np.unique(group_of, return_inverse=True)
        begins = np.concatenate([[0], np.cumsum(np.diff(starts)[needed])[:-1]])
        places = begins[order.reshape(rows.shape)] + rows - starts[group_of]
        # One chunk: taking rows from many chunks would copy all of them each time.
        return pa.concat_tables([self._row_group(int(g)) for g in needed]).combine_chunks(), places

    def batches(self, start: int, stop: int, batch_size: int) -> Iterator[pa.Table]:
        """Rows `start` to `stop` in stored order, `batch_size` at a time; the last batch may be shorter."""
        _, starts = self._groups
        pending: list[pa.Table] = []
        held = 0
        for group in range(int(np.searchsorted(starts, start, side="right")) - 1, len(starts) - 1):
            low, high = max(start, int(starts[group])), min(stop, int(starts[group + 1]))
            if low >= high:
                break
            pending.append(self._row_group(group).slice(low - int(starts[group]), high - low))
            held += high - low
            while held >= batch_size:
                table = pa.concat_tables(pending)
                yield table.slice(0, batch_size).combine_chunks()
                pending, held = [table.slice(batch_size)], held - batch_size
        if held:
            yield pa.concat_tables(pending).combine_chunks()

    def _row_group(self, group: int) -> pa.Table:
        path, index = self._groups[0][group]
        # No pre-buffering threads: a training worker has few cores and reads ahead in a thread of its own.
        file, columns = _open(self.folder / path), list(self.columns)
        return steadily(str(self.folder / path), lambda: file.read_row_group(index, columns=columns, use_threads=False))


@functools.lru_cache(maxsize=256)
def _open(path: Path) -> pq.ParquetFile:
    return open_parquet(path, memory_map=True)


def train_tables(
    reader: SplitReader, order: TrainOrder, rank: int, world_size: int, start_step: int = 0
) -> Iterator[pa.Table]:
    """The tables of one rank for one epoch from `start_step` on, one a step."""
    for window in range(start_step // order.steps_per_window, order.num_windows):
        rows = order.rows(window, rank, world_size)[max(0, start_step - window * order.steps_per_window) :]
        if not len(rows):
            return
        table, places = reader.hold(rows)
        for step in places:
            yield table.take(pa.array(step))
        del table  # before the next window is read


def tensor_column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A `fixed_shape_tensor` column as an array of shape (rows, *shape), without a copy where it is one chunk."""
    array: npt.NDArray[Any] = _one_chunk(table, name).to_numpy_ndarray()
    return array


def _one_chunk(table: pa.Table, name: str) -> pa.Array:
    """A column as one array, without a copy where it is one chunk: `combine_chunks` copies even then."""
    column = table.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined


def frames_column(table: pa.Table, column: Column) -> tuple[npt.NDArray[Any], Int64s]:
    """A column of shape `(None, *frame)` as frames of shape (all frames, *frame) and offsets (rows + 1,) in frames.

    The frames of row i are `frames[offsets[i]:offsets[i + 1]]`; read-only, without a copy where it is one chunk.
    """
    data, offsets = ragged_column(table, column.name)
    frame_shape = tuple(int(size) for size in column.shape[1:] if size is not None)
    frames = data.view(np.dtype(column.dtype)).reshape(-1, *frame_shape)
    return frames, offsets // (frames.dtype.itemsize * math.prod(frame_shape))


def ragged_column(table: pa.Table, name: str) -> tuple[npt.NDArray[Any], Int64s]:
    """A list or binary column as flat values and offsets of shape (rows + 1,), the first of them 0.

    The values of row i are `values[offsets[i]:offsets[i + 1]]`; a binary column gives uint8 bytes.
    """
    column = _one_chunk(table, name)
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} missing values where every row must have one")
    if pa.types.is_large_binary(column.type):
        _, offsets_buffer, data = column.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
        values = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    else:
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.to_numpy()
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]
