"""From an id to its row in a table: made once, memory-mapped by every process that looks ids up.

The file is an Arrow IPC file of one record batch, all columns of one length:

    id      the ids, in the order of the table's rows: also the way from a row back to its id
    hash    a 64-bit hash of every id, ascending
    row     the row that each of these hashes is of; among equal hashes the row that counts comes first

A lookup is a binary search among the hashes and a comparison of the ids themselves, so that it is exact whatever the
hash. Building takes memory for the ids and 24 bytes for each; looking up takes none but the pages that it touches.
"""
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmray.features.native import compiled, inlined
from mmray.files import written_whole

Int64s = npt.NDArray[np.int64]
Uint8s = npt.NDArray[np.uint8]
Uint64s = npt.NDArray[np.uint64]


class DuplicateIdError(ValueError):
    """An id that stands in two rows. `id` and `rows` say which."""

    def __init__(self, id_: str, rows: tuple[int, int], num_duplicates: int) -> None:
        super().__init__(
            f"id {id_!r} stands in row {rows[0]:,} and in row {rows[1]:,}; rows with an id that an earlier one has: "
            f"{num_duplicates:,}"
        )
        self.id, self.rows, self.num_duplicates = id_, rows, num_duplicates


@dataclass(frozen=True, eq=False)
class IdTable:
    """The rows of ids. Pickles as its path, so that it can be sent to other processes of a node."""

    path: Path
    ids: pa.LargeStringArray  # by row
    _hashes: Uint64s
    _rows: Int64s

    @classmethod
    def build(
        cls, path: Path, ids: Iterable[pa.Array], duplicates: Literal["refuse", "first", "last"] = "refuse"
    ) -> IdTable:
        """Write the table of `ids`, given in pieces, whole, and open it.

        An id that stands in several rows counts by its first or last one, or raises DuplicateIdError.
        """
        pieces = [piece.cast(pa.large_string()) for piece in ids]
        every = pa.concat_arrays([*pieces, pa.array([], pa.large_string())])
        del pieces
        if every.null_count:
            raise ValueError(f"{every.null_count:,} of {len(every):,} rows have no id")
        hashes = _hashes_of(*_memory(every))
        rows = np.argsort(hashes, kind="stable")
        if duplicates == "last":  # among equal hashes the last row first
            rows = len(every) - 1 - np.argsort(hashes[::-1], kind="stable")
        hashes = hashes[rows]
        if duplicates == "refuse":
            _refuse_duplicates(every, hashes, rows)
        with written_whole(path) as aside:
            schema = pa.schema([("id", pa.large_string()), ("hash", pa.uint64()), ("row", pa.int64())])
            with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                writer.write_batch(pa.RecordBatch.from_arrays([every, pa.array(hashes), pa.array(rows)], schema=schema))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> IdTable:
        """Map a table that `build` wrote."""
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        return cls(path, batch.column("id"), batch.column("hash").to_numpy(), batch.column("row").to_numpy())

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return IdTable.open, (self.path,)

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, ids: pa.Array | Sequence[str]) -> Int64s:
        """The row of each id, (n,); -1 for an id that is not there, and for none."""
        wanted = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
        wanted = wanted.cast(pa.large_string())
        offsets, data = _memory(wanted)
        rows = np.empty(len(wanted), np.int64)
        _look_up(offsets, data, *_memory(self.ids), self._hashes, self._rows, rows)
        if wanted.null_count:
            rows[np.asarray(wanted.is_null())] = -1
        return rows


def _memory(strings: pa.LargeStringArray) -> tuple[Int64s, Uint8s]:
    """Offsets (n + 1,) and bytes of an array of strings, without a copy."""
    _, offsets, data = strings.buffers()
    if not len(strings) or data is None:
        return np.zeros(len(strings) + 1, np.int64), np.empty(0, np.uint8)
    first, last = strings.offset, strings.offset + len(strings) + 1
    return np.frombuffer(offsets, np.int64)[first:last], np.frombuffer(data, np.uint8)


def _refuse_duplicates(ids: pa.LargeStringArray, hashes: Uint64s, rows: Int64s) -> None:
    """DuplicateIdError where two rows have one id. Only rows of equal hash, which are few, are compared."""
    repeated = np.flatnonzero(hashes[1:] == hashes[:-1])
    suspects = np.union1d(rows[repeated], rows[repeated + 1])
    seen: dict[str, int] = {}
    found: list[tuple[str, int, int]] = []
    for row, id_ in zip(suspects.tolist(), ids.take(pa.array(suspects)).to_pylist(), strict=True):
        if (first := seen.setdefault(id_, row)) != row:
            found.append((id_, first, row))
    if found:
        id_, first, second = found[0]
        raise DuplicateIdError(id_, (first, second), len(found))


@inlined
def _hash(data: Uint8s, start: int, stop: int) -> np.uint64:
    """FNV-1a over the bytes, its bits mixed as at the end of MurmurHash3: http://www.isthe.com/chongo/tech/comp/fnv."""
    state = np.uint64(0xCBF29CE484222325)
    for i in range(start, stop):
        state = (state ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    state = (state ^ (state >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    state = (state ^ (state >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return state ^ (state >> np.uint64(33))


@compiled
def _hashes_of(offsets: Int64s, data: Uint8s) -> Uint64s:
    """The hash of every string."""
    hashes = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(hashes)):
        hashes[i] = _hash(data, offsets[i], offsets[i + 1])
    return hashes


@compiled
def _look_up(
    offsets: Int64s, data: Uint8s, id_offsets: Int64s, id_data: Uint8s, hashes: Uint64s, rows: Int64s, found: Int64s
) -> None:
    """Write the row of every wanted string, or -1, into `found`."""
    for i in range(len(found)):
        start, stop = offsets[i], offsets[i + 1]
        wanted = _hash(data, start, stop)
        low, high = 0, len(hashes)
        while low < high:  # the first hash that is not smaller
            middle = (low + high) // 2
            if hashes[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        found[i] = -1
        while low < len(hashes) and hashes[low] == wanted and found[i] < 0:
            row = rows[low]
            at = id_offsets[row]
            same = id_offsets[row + 1] - at == stop - start
            k = 0
            while same and k < stop - start:
                same = id_data[at + k] == data[start + k]
                k += 1
            if same:
                found[i] = row
            low += 1
