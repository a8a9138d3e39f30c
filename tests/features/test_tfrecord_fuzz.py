"""Thousands of damaged records and shards: no crash, no byte read or written out of place, no row but protobuf's."""

from __future__ import annotations

import ctypes
import mmap
import random
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from example_peer import PACKED, UNPACKED, example, frame, sequence_example, write_shard
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from mmray.features import tfrecord, tfrecord_columns
from mmray.features.tfrecord import BadRecord, RecordSpec, SchemaError, read_batches

VIDEO = RecordSpec(num_classes=10, vectors={"mean_rgb": 12, "mean_audio": 3})
FRAME = RecordSpec(num_classes=10, vectors={"start": 1}, frames={"rgb": 8, "audio": 2})
NUM_MUTANTS = 10_000  # of each level
CANARY = 0xA5


def seeds(level: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    records = []
    for k in range(24):
        classes = PACKED if k % 2 else UNPACKED
        features: dict[str, Any] = {("id", "video_id")[k % 3 == 0]: f"vidéo {k}".encode(), "other": [1, 300, 2**40]}
        if k % 4:
            features["labels"] = rng.integers(0, 10, k % 7).tolist()
        if level == "video":
            features |= {"mean_rgb": rng.standard_normal(12).tolist(), "mean_audio": [0.5, k, -1.0]}
            records.append(example(features, classes))
        else:
            lists = {name: [rng.bytes(size) for _ in range(1 + k % 4)] for name, size in (("rgb", 8), ("audio", 2))}
            records.append(sequence_example({**features, "start": [0.25]}, lists, classes))
    return records


def mutant(rng: random.Random, records: list[bytes]) -> bytes:
    """A record with one to four of: flipped bit, new byte, short varint edit, cut, hole, repetition, splice."""
    data = bytearray(rng.choice(records))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        i = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(8)
        if not data or kind == 0:
            other = rng.choice(records)
            data[i:] = other[rng.randrange(len(other)) :]
        elif kind == 1:
            data[i] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[i] = rng.choice((0, 1, 2, 3, 8, 10, 13, 18, 26, 127, 128, 255, rng.randrange(256)))
        elif kind == 3:  # the head of the record holds most lengths
            data[min(rng.randrange(12), len(data) - 1)] = rng.randrange(256)
        elif kind == 4:
            del data[i:]
        elif kind == 5:
            del data[i : i + rng.randrange(1, 20)]
        elif kind == 6:
            data[i:i] = data[i : i + rng.randrange(1, 40)]
        else:
            data[i:i] = b"\xff" * rng.randrange(1, 11)
    return bytes(data)


def truth(record: bytes, spec: RecordSpec) -> dict[str, Any] | None:
    """The row that protobuf's parse of the record means, None where it means none; DecodeError without a parse."""
    if spec.frames:
        message = PACKED["SequenceExample"].FromString(record)
        context, lists = message.context.feature, message.feature_lists.feature_list
    else:
        message = PACKED["Example"].FromString(record)
        context, lists = message.features.feature, {}
        if any(f.field_number == 2 and f.wire_type == 2 and f.data for f in UnknownFieldSet(message)):
            return None
    name = next((name for name in spec.id_names if name in context), None)
    if name is None or len(context[name].bytes_list.value) != 1 or not context[name].bytes_list.value[0]:
        return None
    row: dict[str, Any] = {"labels": []}
    try:
        row["id"] = context[name].bytes_list.value[0].decode()
    except UnicodeDecodeError:
        return None
    if "labels" in context:
        if context["labels"].WhichOneof("kind") not in (None, "int64_list"):
            return None
        row["labels"] = list(dict.fromkeys(context["labels"].int64_list.value))
        if not all(0 <= label < spec.num_classes for label in row["labels"]):
            return None
    for name, size in spec.vectors.items():
        vector = np.array(context[name].float_list.value if name in context else [], np.float32)
        if len(vector) != size or not np.isfinite(vector).all():
            return None
        row[name] = vector.tobytes()
    counts = set()
    for name, size in spec.frames.items():
        frames = [list(f.bytes_list.value) for f in lists[name].feature] if name in lists else []
        if not frames or any(len(values) != 1 or len(values[0]) != size for values in frames):
            return None
        row[name] = b"".join(values[0] for values in frames)
        counts.add(len(frames))
    return row if len(counts) <= 1 else None


def has_strange_entry(record: bytes) -> bool:
    """Whether a map entry holds more than key and value: protobuf drops that feature unseen, we reject the record."""
    message = PACKED["SequenceExample"].FromString(record)
    return any(f.field_number == 1 for part in (message.context, message.feature_lists) for f in UnknownFieldSet(part))


def is_of_the_other_kind(record: bytes, level: str) -> bool:
    """Whether a SequenceExample stands where an Example was asked for, or an Example's vectors without any list."""
    try:
        message = PACKED["SequenceExample"].FromString(record)
    except DecodeError:
        return True  # protobuf can't say
    lists, features = message.feature_lists.feature_list, message.context.feature
    if level == "video":
        return bool(lists)
    return not lists and any(len(f.float_list.value) > 1 or n in FRAME.frames for n, f in features.items())


def read(path: str, spec: RecordSpec, **options: Any) -> tuple[list[dict[str, Any]], list[BadRecord]]:
    rows, bad = [], []
    for batch in read_batches(path, spec, reject=bad.append, batch_bytes=4096, **options):
        for i, id_ in enumerate(batch.ids.to_pylist()):
            row = {"id": id_, "labels": batch.labels[batch.label_offsets[i] : batch.label_offsets[i + 1]].tolist()}
            row |= {name: vector[i].tobytes() for name, vector in batch.vectors.items()}
            first, last = batch.frame_offsets[i], batch.frame_offsets[i + 1]
            row |= {name: frames[first:last].tobytes() for name, frames in batch.frames.items()}
            rows.append(row)
    return rows, bad


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put marked bytes before and behind all memory that the parser writes to, and check them at the end."""
    blocks: list[tuple[npt.NDArray[np.uint8], int]] = []

    def memory(num_values: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = num_values * np.dtype(dtype).itemsize
        block = np.full(size + 512, CANARY, np.uint8)
        blocks.append((block, size))
        return block[256 : 256 + size].view(dtype)

    monkeypatch.setattr(tfrecord, "_memory", memory)
    yield
    assert len(blocks) > 10
    for block, size in blocks:
        assert (block[:256] == CANARY).all()
        assert (block[256 + size :] == CANARY).all()


@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize(("level", "spec"), [("video", VIDEO), ("frame", FRAME)], ids=["video", "frame"])
def test_mutated_records(tmp_path: Path, level: str, spec: RecordSpec) -> None:
    rng = random.Random(f"{level} 1")
    records = seeds(level)
    seen = {"rows": 0, "rejected": 0, "not protobuf's": 0, "of the other kind": 0}
    for _ in range(NUM_MUTANTS // 200):
        mutants = [mutant(rng, records) for _ in range(200)]
        path = tmp_path / "shard"
        while mutants:
            write_shard(path, mutants)
            try:
                rows, bad = read(str(path), spec, batch_rows=rng.choice((1, 7, 64)), reuse_buffers=rng.random() < 0.5)
                break
            except SchemaError as error:  # the message says which record; go on without it
                at = int(str(error).split(", record ")[1].split()[0])
                assert is_of_the_other_kind(mutants[at], level)
                seen["of the other kind"] += 1
                del mutants[at]
        rejected = {b.record for b in bad}
        assert len(rejected) == len(bad)
        assert len(rows) + len(bad) == len(mutants)
        given = iter(rows)
        for k, record in enumerate(mutants):
            row = None if k in rejected else next(given)
            seen["rows" if row else "rejected"] += 1
            try:
                expected = truth(record, spec)
                assert row == expected or (row is None and has_strange_entry(record)), record
            except DecodeError:
                # protobuf looks into features that were not asked for, and at names' UTF-8.
                seen["not protobuf's"] += row is not None
    assert seen["rows"] > NUM_MUTANTS // 20
    assert seen["rejected"] > NUM_MUTANTS // 2
    assert seen["not protobuf's"] < NUM_MUTANTS // 20


@pytest.mark.parametrize(("level", "spec"), [("video", VIDEO), ("frame", FRAME)], ids=["video", "frame"])
def test_mutated_shards(tmp_path: Path, level: str, spec: RecordSpec) -> None:
    """Damage anywhere in a file: exactly the frames that it left whole come back."""
    rng = random.Random(f"{level} 2")
    records = seeds(level)
    frames = [frame(record) for record in records]
    whole = b"".join(frames)
    ends = np.cumsum([len(f) for f in frames])
    path = tmp_path / "shard"
    path.write_bytes(whole)
    good, bad = read(str(path), spec)
    assert len(good) + len(bad) == len(records)
    parsed = [truth(record, spec) for record in records]
    for _ in range(300):
        damaged = bytearray(whole)
        hit = set()
        for _ in range(rng.choice((1, 2, 5))):
            i = rng.randrange(len(damaged))
            damaged[i] ^= 1 << rng.randrange(8)
            hit.add(int(np.searchsorted(ends, i, side="right")))
        hit = {k for k in hit if damaged[ends[k] - len(frames[k]) : ends[k]] != frames[k]}
        path.write_bytes(damaged)
        rows, bad = read(str(path), spec, batch_rows=5)
        assert rows == [row for k, row in enumerate(parsed) if k not in hit and row is not None]
        assert bool(bad) == bool(hit or None in parsed)


@pytest.mark.usefixtures("canaries")
def test_anything_without_checksums(tmp_path: Path) -> None:
    """With verification off lengths may be wrong too: every file ends, whatever it says."""
    rng = random.Random(3)
    path = tmp_path / "shard"
    num_rows = 0
    for level, spec in (("video", VIDEO), ("frame", FRAME)):
        frames = [frame(record) for record in seeds(level)]
        for _ in range(300):
            damaged = bytearray(b"".join(rng.sample(frames, 6)))
            for _ in range(rng.randrange(1, 8)):
                i = rng.randrange(len(damaged))
                if rng.random() < 0.3:
                    damaged[i : i + 8] = struct.pack("<Q", rng.choice((0, 1, 7, 1 << 20, 1 << 40, 2**64 - 1)))
                elif rng.random() < 0.2:
                    del damaged[i:]
                    break
                else:
                    damaged[i] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                rows, _ = read(str(path), spec, verify_crc=False)
                num_rows += len(rows)
            except SchemaError:
                pass
    assert num_rows > 500


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
@pytest.mark.parametrize(("level", "spec"), [("video", VIDEO), ("frame", FRAME)], ids=["video", "frame"])
def test_no_byte_behind_the_buffer_is_read(level: str, spec: RecordSpec) -> None:
    """Each mutant ends where a page begins that no one may touch: one byte too far would end the process."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    assert mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), 0) == 0
    buffer = np.frombuffer(memory, np.uint8)
    rows, plan, scratch = tfrecord._plan(spec, 4, 1 << 16)
    columns = tfrecord._allocate(spec, plan, tfrecord._Room(rows, 1000, 1000, 1000))
    rng = random.Random(4)
    records = seeds(level)
    states = set()
    for _ in range(2000):
        data = frame(mutant(rng, records))[:page]
        buffer[page - len(data) : page] = np.frombuffer(data, np.uint8)
        status, _, _ = tfrecord_columns.read_records(
            buffer, page - len(data), page, True, 0, tuple(plan), tuple(columns), tuple(scratch)
        )
        states.add(status)
    assert {tfrecord_columns.NEED_BYTES, tfrecord_columns.MALFORMED} <= states
    assert mprotect(ctypes.c_void_p(address + page), ctypes.c_size_t(page), mmap.PROT_READ | mmap.PROT_WRITE) == 0
