"""TFRecord shards of `tf.train.Example` or `tf.train.SequenceExample`: a file in, columns out, no TensorFlow.

The shard is read a chunk at a time into a buffer that stays in the processor's cache, where `tfrecord_columns` checks
it and writes its values to their places in a batch. Every record gives either one row or one call of `reject`. Damage
costs what it hit: a record with a wrong checksum is passed over; after a wrong length the next frame whose two
checksums hold is looked for. Only a shard of the other kind of message than `RecordSpec` asks for is no matter of
single records: it raises `SchemaError`.

Format: https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmray.features import crc32c
from mmray.features import tfrecord_columns as kernel
from mmray.features.tfrecord_shard import KINDS, Shard, contents_of
from mmray.schema import Column, arrow_schema


class SchemaError(ValueError):
    """The shard holds SequenceExamples where Examples were asked for, or the reverse."""


@dataclass(frozen=True)
class RecordSpec:
    """What to read of each record.

    With `frames` the records are SequenceExamples, whose context holds id, labels and vectors; without, Examples.
    """

    num_classes: int  # labels are 0 ... num_classes - 1
    vectors: Mapping[str, int] = field(default_factory=dict)  # float list -> its number of values
    frames: Mapping[str, int] = field(default_factory=dict)  # feature list -> bytes (uint8 values) of a frame
    id_names: tuple[str, ...] = ("id", "video_id")  # the first of these that a record has
    labels_name: str = "labels"  # may be absent: no labels, as in test shards
    max_frames: int | None = None  # later frames of a video are checked and dropped; None keeps all
    dtype: Literal["float32", "float16"] = "float32"  # of the vectors given out; the file's are float32

    def __post_init__(self) -> None:
        if self.num_classes < 1 or not self.id_names:
            raise ValueError(f"need num_classes >= 1 and an id name; got {self.num_classes} and {self.id_names}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max_frames={self.max_frames}; give at least 1, or none to keep every frame")
        for name, size in (*self.vectors.items(), *self.frames.items()):
            if not name or size < 1:
                raise ValueError(f"feature {name!r} of size {size}: a feature has a name and at least one value")
        used = [*self.id_names, self.labels_name, *self.vectors, *self.frames]
        if len(set(used)) < len(used):
            raise ValueError(f"one name stands for two features among {', '.join(used)}")

    @property
    def columns(self) -> list[Column]:
        """The columns of `Batch.to_arrow`, in order."""
        columns = [Column(name="id", dtype="string"), Column(name="labels", dtype="int32", shape=(None,))]
        columns += [Column(name=name, dtype=self.dtype, shape=(size,)) for name, size in self.vectors.items()]
        columns += [Column(name=name, dtype="uint8", shape=(None, size)) for name, size in self.frames.items()]
        if self.frames:
            columns.append(Column(name="num_frames", dtype="int32", unit="frames"))
        return columns


@dataclass(frozen=True)
class BadRecord:
    """A piece of a shard that gave no row.

    `offset` is that of its frame in the file, after decompression. `record` counts from 0, and is None for a piece that
    is not one record, and after a loss of framing, when nobody knows how many records were lost.
    """

    reason: str
    offset: int
    record: int | None


Reject = Callable[[BadRecord], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as a structure of arrays. With `reuse_buffers` they are valid until the next batch is asked for."""

    ids: pa.StringArray
    labels: npt.NDArray[np.int32]  # of row i: [label_offsets[i], label_offsets[i + 1]), distinct, in file order
    label_offsets: npt.NDArray[np.int32]
    vectors: dict[str, npt.NDArray[np.floating]]  # (rows, D)
    frames: dict[str, npt.NDArray[np.uint8]]  # (all frames, D); of row i: [frame_offsets[i], frame_offsets[i + 1])
    frame_offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def to_arrow(self, spec: RecordSpec) -> pa.RecordBatch:
        """The same rows as the columns `spec.columns`, in the same memory; only offsets and counts are computed."""
        columns: list[pa.Array] = [
            self.ids,
            pa.ListArray.from_arrays(pa.array(self.label_offsets), pa.array(self.labels)),
        ]
        columns += [pa.FixedShapeTensorArray.from_numpy_ndarray(vector) for vector in self.vectors.values()]
        for frames in self.frames.values():
            offsets = pa.py_buffer(self.frame_offsets * frames.shape[1])
            columns.append(pa.Array.from_buffers(pa.large_binary(), len(self), [None, offsets, pa.py_buffer(frames)]))
        if self.frames:
            columns.append(pa.array(np.diff(self.frame_offsets).astype(np.int32)))
        return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(spec.columns))


def masked_crc32c(data: bytes) -> int:
    """The masked CRC-32C of `data` as TFRecord stores it: rotated right by 15 bits, plus 0xA282EAD8 modulo 2^32."""
    return int(crc32c.masked_crc32c(np.frombuffer(data, np.uint8), 0, len(data)))


def read_batches(
    path: str,
    spec: RecordSpec,
    *,
    reject: Reject,
    batch_rows: int = 1024,
    batch_bytes: int = 8 << 20,
    verify_crc: bool = True,
    reuse_buffers: bool = False,
) -> Iterator[Batch]:
    """Read a shard, plain or gzip, in file order.

    A batch has at most `batch_rows` rows and, unless one row alone needs more, `batch_bytes` bytes of vectors and as
    many of frames. Without `verify_crc` damaged values go unnoticed where they still parse. `reuse_buffers` writes each
    batch over the one before, which spares fresh memory: for consumers that are done with a batch when they ask for the
    next.

    Raises SchemaError where the shard holds the other kind of message, OSError where it can't be read, and whatever
    `reject` raises.
    """
    rows, plan, scratch = _plan(spec, batch_rows, batch_bytes)
    room = _Room(rows, id_bytes=32 * rows, labels=16 * rows, frames=max(1, batch_bytes // _frame_bytes(spec)))
    columns = _allocate(spec, plan, room)
    row, record = 0, 0
    framing_held = True  # so far: `record` counts
    with Shard(path) as shard:
        while True:
            status, shard.start, rows_now = kernel.read_records(
                shard.buffer, shard.start, shard.stop, verify_crc, row, tuple(plan), tuple(columns), tuple(scratch)
            )
            row, record = rows_now, record + rows_now - row
            if status == kernel.NEED_BYTES:
                if not shard.fill(shard.frame_bytes()):
                    break
            elif status == kernel.BATCH_FULL and row > 0:
                yield _batch(spec, plan, columns, row)
                row = 0
                columns = columns if reuse_buffers else _allocate(spec, plan, room)
            elif status == kernel.BATCH_FULL:  # one record alone needs more room
                room = _Room(rows, 2 * room.id_bytes, 2 * room.labels, 2 * room.frames)
                columns = _allocate(spec, plan, room)
            elif status in (kernel.BAD_LENGTH_CRC, kernel.ABSURD_LENGTH):
                framing_held = False
                reject(_lost(shard, status))
            else:
                where = record if framing_held else None
                reject(BadRecord(_reason(path, where, shard, status, spec, scratch.detail), shard.offset, where))
                shard.start += shard.frame_bytes()
                record += 1
        if row > 0:
            yield _batch(spec, plan, columns, row)
        if tail := shard.tail():
            reject(BadRecord(tail, shard.offset, record if framing_held and shard.start < shard.stop else None))


def _lost(shard: Shard, status: int) -> BadRecord:
    """Leave a frame whose length can't be believed for the next whole frame, or the end of the file."""
    lost_from = shard.offset
    length = int(shard.buffer[shard.start : shard.start + 8].view("<u8")[0])
    found = shard.seek_frame()
    if lost_from == 0 and not found:
        return BadRecord("not a TFRecord file: no frame whose checksums hold stands anywhere in it", 0, None)
    what = (
        f"absurd record length {length}" if status == kernel.ABSURD_LENGTH else "checksum of the record length is wrong"
    )
    rest = "next whole frame" if found else "end of the file"
    return BadRecord(f"{what}: the {shard.offset - lost_from} bytes up to the {rest} are lost", lost_from, None)


@dataclass(frozen=True)
class _Room:
    """How much a batch can hold."""

    rows: int
    id_bytes: int
    labels: int
    frames: int


def _frame_bytes(spec: RecordSpec) -> int:
    """Bytes of one frame of every frame-level feature."""
    return max(1, sum(spec.frames.values()))


def _plan(spec: RecordSpec, batch_rows: int, batch_bytes: int) -> tuple[int, kernel.Plan, kernel.Scratch]:
    """Rows of a batch, and what the compiled parser needs to know."""
    rows = max(1, min(batch_rows, batch_bytes // max(1, 4 * sum(spec.vectors.values()))))
    names = [name.encode() for name in (*spec.id_names, spec.labels_name, *spec.vectors, *spec.frames)]
    sizes = [0] * (len(spec.id_names) + 1) + [*spec.vectors.values(), *spec.frames.values()]
    kinds = [kernel.BYTES_LIST] * len(spec.id_names) + [kernel.INT64_LIST]
    kinds += [kernel.FLOAT_LIST] * len(spec.vectors) + [kernel.BYTES_LIST] * len(spec.frames)
    # The largest float32 that float16 rounds down to its own largest value, 65504, and not up to infinity.
    largest = np.finfo(np.float32).max if spec.dtype == "float32" else np.nextafter(np.float32(65520), np.float32(0))
    plan = kernel.Plan(
        names=np.frombuffer(b"".join(names), np.uint8).copy(),
        name_ends=np.cumsum([len(name) for name in names]).astype(np.int64),
        kinds=np.array(kinds, np.int64),
        sizes=np.array(sizes, np.int64),
        num_id_names=len(spec.id_names),
        num_context=len(names) - len(spec.frames),
        num_slots=len(names),
        num_classes=spec.num_classes,
        max_frames=np.iinfo(np.int64).max if spec.max_frames is None else spec.max_frames,
        max_float_bits=int(np.float32(largest).view(np.uint32)),
    )
    scratch = kernel.Scratch(
        entries=np.zeros(2 * len(names), np.int64),
        label_seen=np.zeros(spec.num_classes, np.int64),
        num_lists=np.zeros(1, np.int64),
        span=np.zeros(2, np.int64),
        detail=np.zeros(3, np.int64),
    )
    return rows, plan, scratch


def _memory(num_values: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array in Arrow's pool, which hands freed blocks out again: fresh pages would cost more than parsing."""
    return np.frombuffer(pa.allocate_buffer(num_values * np.dtype(dtype).itemsize), dtype)


def _allocate(spec: RecordSpec, plan: kernel.Plan, room: _Room) -> kernel.Columns:
    """Columns for one batch."""
    capacities = np.full(plan.num_slots, room.rows)
    capacities[plan.num_context :] = room.frames
    ends = np.concatenate([[0], np.cumsum(capacities * plan.sizes)]).astype(np.int64)
    bases = ends[:-1].copy()
    bases[plan.num_context :] -= ends[plan.num_context]  # frames have an array of their own
    columns = kernel.Columns(
        id_bytes=_memory(room.id_bytes, np.uint8),
        id_offsets=_memory(room.rows + 1, np.int32),
        labels=_memory(room.labels, np.int32),
        label_offsets=_memory(room.rows + 1, np.int32),
        vectors=_memory(int(ends[plan.num_context]), np.uint32),
        frames=_memory(int(ends[-1] - ends[plan.num_context]), np.uint8),
        frame_offsets=_memory(room.rows + 1, np.int64),
        bases=bases,
        max_rows=room.rows,
        max_id_bytes=room.id_bytes,
        max_labels=room.labels,
        max_frames=room.frames,
    )
    for offsets in (columns.id_offsets, columns.label_offsets, columns.frame_offsets):
        offsets[0] = 0
    return columns


def _batch(spec: RecordSpec, plan: kernel.Plan, columns: kernel.Columns, rows: int) -> Batch:
    """The first `rows` rows as views."""
    vector_slot = plan.num_id_names + 1
    num_frames = int(columns.frame_offsets[rows])

    def rows_of(values: npt.NDArray[Any], slot: int, count: int, size: int) -> npt.NDArray[Any]:
        base = columns.bases[slot]
        return values[base : base + count * size].reshape(count, size)

    floats = columns.vectors.view(np.float32)
    vectors = {
        name: rows_of(floats, vector_slot + k, rows, size).astype(spec.dtype, copy=False)
        for k, (name, size) in enumerate(spec.vectors.items())
    }
    frames = {
        name: rows_of(columns.frames, plan.num_context + k, num_frames, size)
        for k, (name, size) in enumerate(spec.frames.items())
    }
    id_offsets = columns.id_offsets[: rows + 1]
    return Batch(
        ids=pa.StringArray.from_buffers(
            rows, pa.py_buffer(id_offsets), pa.py_buffer(columns.id_bytes[: id_offsets[-1]])
        ),
        labels=columns.labels[: columns.label_offsets[rows]],
        label_offsets=columns.label_offsets[: rows + 1],
        vectors=vectors,
        frames=frames,
        frame_offsets=columns.frame_offsets[: rows + 1],
    )


def _reason(
    path: str, record: int | None, shard: Shard, status: int, spec: RecordSpec, detail: npt.NDArray[np.int64]
) -> str:
    """Why the record at `shard.start` gives no row; raises SchemaError where the whole shard is of the other kind."""
    if status == kernel.BAD_DATA_CRC:
        return "checksum of the record is wrong"
    if status == kernel.MALFORMED:
        return "malformed protobuf: a number or length runs past its end, or a tag is not one that can stand there"
    found = contents_of(shard.buffer, *shard.record())
    place = f"{path}, {'a record' if record is None else f'record {record}'} at byte {shard.offset}"
    if status == kernel.IS_SEQUENCE_EXAMPLE and not any(count for count, _, _ in found.feature_lists.values()):
        return "the record has a field 2, which an Example has not, but no feature list with a frame stands in it"
    if status == kernel.IS_SEQUENCE_EXAMPLE:
        raise SchemaError(
            f"{place} is a SequenceExample (frame level), to be read as an Example (video level), which would lose "
            f"every frame. It has {found}. Set dataset.level: frame"
        )
    if status == kernel.NO_ID:
        return f"no id: none of {', '.join(spec.id_names)} is among its features: {found}. See dataset.id_names"

    names = [*spec.id_names, spec.labels_name, *spec.vectors, *spec.frames]
    slot, index, value = (int(number) for number in detail)
    name = names[slot]
    size = {**spec.vectors, **spec.frames}.get(name)
    place_in = f"{name!r}, frame {index}," if name in spec.frames else f"{name!r}"
    if status == kernel.MISSING:
        vectors = [n for n, (kind, count) in found.features.items() if kind == "float" and count > 1]
        if name in spec.frames and not found.feature_lists and (vectors or name in found.features):
            raise SchemaError(
                f"{place} is an Example (video level), to be read as a SequenceExample (frame level), but it has no "
                f"feature list. It has {found}. Set dataset.level: video"
            )
        return f"no feature {name!r}; it has {found}. See dataset.features"
    if status == kernel.WRONG_KIND:
        expected = "float" if name in spec.vectors else "int64" if name == spec.labels_name else "bytes"
        if name in spec.frames and value >= 0:
            return f"{place_in} has {value} values, expected one of {size} bytes"
        return f"{place_in} holds {KINDS[abs(value)]}, expected {expected}"
    if status == kernel.NUM_VALUES and name in spec.vectors:
        return f"{name!r} has {value} values, expected {size} (dataset.features)"
    if status == kernel.NUM_VALUES:
        return f"{name!r} is empty" if value == 1 else f"{name!r} has {value} values, expected one"
    if status == kernel.BAD_UTF8:
        return f"{name!r} is not UTF-8"
    if status == kernel.BAD_LABEL:
        return f"label {value} is outside [0, {spec.num_classes}): raise dataset.num_classes if it is a class"
    if status == kernel.BAD_FLOAT:
        number = float(np.uint32(value).view(np.float32))
        limit = "a finite number" if not np.isfinite(number) else "at most 65504 in magnitude (float16)"
        return f"{name!r}, value {index}, is {number}, expected {limit}"
    if status == kernel.FRAME_BYTES_WRONG:
        return f"{place_in} has {value} bytes, expected {size} (dataset.features)"
    assert status == kernel.FRAME_COUNT
    if value == 0:
        return f"{name!r} has no frame"
    return f"{name!r} has {value} frames, the list before it {index}"
