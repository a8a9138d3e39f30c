"""The TFRecord reader against google.protobuf and google_crc32c, on whole and on damaged shards."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
from example_peer import PACKED, UNPACKED, example, frame, masked, sequence_example, write_shard

from mmray.features import crc32c, tfrecord
from mmray.features.tfrecord import BadRecord, RecordSpec, SchemaError, masked_crc32c, read_batches
from mmray.features.tfrecord_columns import MAX_RECORD_BYTES
from mmray.features.tfrecord_shard import CHUNK_BYTES, read_contents
from mmray.schema import arrow_schema

VIDEO = RecordSpec(num_classes=10, vectors={"mean_rgb": 4, "mean_audio": 3})
FRAME = RecordSpec(num_classes=10, frames={"rgb": 4, "audio": 2})


def rows_of(path: str, spec: RecordSpec, **options: Any) -> tuple[list[dict[str, Any]], list[BadRecord]]:
    """Every row as plain values (copies), and what was rejected."""
    rows: list[dict[str, Any]] = []
    bad: list[BadRecord] = []
    for batch in read_batches(path, spec, reject=bad.append, **options):
        for i in range(len(batch)):
            labels = batch.labels[batch.label_offsets[i] : batch.label_offsets[i + 1]]
            row = {"id": batch.ids[i].as_py(), "labels": labels.tolist()}
            row |= {name: vector[i].tolist() for name, vector in batch.vectors.items()}
            first, last = batch.frame_offsets[i], batch.frame_offsets[i + 1]
            row |= {name: frames[first:last].tobytes() for name, frames in batch.frames.items()}
            rows.append(row)
    return rows, bad


def video(k: int = 0, **changes: Any) -> dict[str, Any]:
    features = {
        "id": f"v{k}".encode(),
        "labels": [k % 10, (k + 3) % 10],
        "mean_rgb": [k + 0.5, -1.0, 2.0, 0.25],
        "mean_audio": [0.0, 1.5, -float(k)],
    }
    return {name: value for name, value in {**features, **changes}.items() if value is not None}


def video_row(k: int = 0) -> dict[str, Any]:
    features = video(k)
    return {**features, "id": features["id"].decode()}


def clip(k: int = 0, num_frames: int = 3, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(k)
    lists: dict[str, Any] = {
        name: [rng.bytes(size) for _ in range(num_frames)] for name, size in (("rgb", 4), ("audio", 2))
    }
    lists |= changes
    context = {"id": f"v{k}".encode(), "labels": [k % 10]}
    return context, {name: frames for name, frames in lists.items() if frames is not None}


def clip_row(k: int = 0, num_frames: int = 3) -> dict[str, Any]:
    context, lists = clip(k, num_frames)
    return {
        "id": context["id"].decode(),
        "labels": context["labels"],
        **{name: b"".join(frames) for name, frames in lists.items()},
    }


# ---- checksums


@pytest.mark.parametrize("compute", [crc32c.crc32c, crc32c.crc32c_tables], ids=["chosen", "tables"])
def test_crc32c_equals_google(compute: Any) -> None:
    data = np.random.default_rng(0).bytes(5000)
    buffer = np.frombuffer(data, np.uint8)
    block = 3 * crc32c.BLOCK_BYTES
    for start in (0, 1, 7):
        for size in (*range(40), block - 1, block, block + 1, 2 * block + 13, 4000):
            assert compute(buffer, start, start + size) == google_crc32c.value(data[start : start + size]), size


def test_crc32c_of_the_standard_check_string() -> None:
    assert crc32c.crc32c(np.frombuffer(b"123456789", np.uint8), 0, 9) == 0xE3069283


def test_hardware_and_tables_agree() -> None:
    if not crc32c.has_sse42():
        pytest.skip("this processor has no SSE4.2")
    buffer = np.random.default_rng(1).integers(0, 256, 100_000, np.uint8)
    assert crc32c.crc32c_sse42(buffer, 3, 99_999) == crc32c.crc32c_tables(buffer, 3, 99_999)


def test_masked_crc32c_equals_google() -> None:
    for data in (b"", b"a", bytes(8), np.random.default_rng(0).bytes(1000)):
        assert masked_crc32c(data) == masked(data)


# ---- whole shards


@pytest.mark.parametrize("classes", [PACKED, UNPACKED], ids=["packed", "unpacked"])
@pytest.mark.parametrize("reuse_buffers", [False, True])
def test_examples(tmp_path: Path, classes: dict[str, Any], reuse_buffers: bool) -> None:
    path = write_shard(tmp_path / "a", [example(video(k), classes) for k in range(100)])
    rows, bad = rows_of(path, VIDEO, batch_rows=7, reuse_buffers=reuse_buffers)
    assert rows == [video_row(k) for k in range(100)]
    assert bad == []


@pytest.mark.parametrize("reuse_buffers", [False, True])
def test_sequence_examples(tmp_path: Path, reuse_buffers: bool) -> None:
    counts = [1 + k % 5 for k in range(60)]
    path = write_shard(tmp_path / "a", [sequence_example(*clip(k, n)) for k, n in enumerate(counts)])
    rows, bad = rows_of(path, FRAME, batch_rows=8, reuse_buffers=reuse_buffers)
    assert rows == [clip_row(k, n) for k, n in enumerate(counts)]
    assert bad == []


def test_vectors_beside_frames_stand_in_the_context(tmp_path: Path) -> None:
    context, lists = clip()
    path = write_shard(tmp_path / "a", [sequence_example({**context, "v": [1.0, 2.0]}, lists)])
    rows, bad = rows_of(path, RecordSpec(10, vectors={"v": 2}, frames={"rgb": 4}))
    assert rows == [{"id": "v0", "labels": [0], "v": [1.0, 2.0], "rgb": b"".join(lists["rgb"])}]
    assert bad == []


def test_batches_have_the_rows_asked_for_and_fresh_ones_stay(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", [example(video(k)) for k in range(10)])
    batches = list(read_batches(path, VIDEO, reject=pytest.fail, batch_rows=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [row for batch in batches for row in batch.ids.to_pylist()] == [f"v{k}" for k in range(10)]
    assert batches[0].vectors["mean_rgb"][:, 0].tolist() == [0.5, 1.5, 2.5, 3.5]


def test_a_batch_is_bounded_in_bytes_but_holds_at_least_a_row(tmp_path: Path) -> None:
    counts = [2, 2, 9, 1, 1, 1]
    path = write_shard(tmp_path / "a", [sequence_example(*clip(k, n)) for k, n in enumerate(counts)])
    batches = list(read_batches(path, FRAME, reject=pytest.fail, batch_bytes=4 * 6))
    assert [np.diff(batch.frame_offsets).tolist() for batch in batches] == [[2, 2], [9, 1, 1, 1]]  # room doubled twice
    rows, _ = rows_of(path, FRAME, batch_bytes=4 * 6)
    assert rows == [clip_row(k, n) for k, n in enumerate(counts)]


def test_ids_and_labels_larger_than_the_first_guess(tmp_path: Path) -> None:
    spec = RecordSpec(num_classes=5000, vectors={"mean_rgb": 4})
    records = [video(k, id=b"x" * 700 + str(k).encode(), labels=list(range(5000))) for k in range(3)]
    rows, bad = rows_of(write_shard(tmp_path / "a", [example(r) for r in records]), spec, batch_rows=2)
    assert [row["id"] for row in rows] == [r["id"].decode() for r in records]
    assert all(row["labels"] == list(range(5000)) for row in rows)
    assert bad == []


def test_records_that_cross_and_exceed_the_read_buffer(tmp_path: Path) -> None:
    size = CHUNK_BYTES // 4
    spec = RecordSpec(10, vectors={"long": size})
    vectors = np.random.default_rng(0).standard_normal((5, size)).astype(np.float32)
    records = [PACKED["Example"].FromString(example({"id": b"%d" % k, "long": vectors[k].tolist()})) for k in range(5)]
    for k in (1, 3):  # more than three buffers long, by features that are skipped
        records[k].features.feature["other"].bytes_list.value.append(bytes(3 * CHUNK_BYTES + k))
    path = write_shard(tmp_path / "a", [record.SerializeToString() for record in records])
    batches = list(read_batches(path, spec, reject=pytest.fail))
    assert np.array_equal(np.concatenate([batch.vectors["long"] for batch in batches]), vectors)


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    plain = Path(write_shard(tmp_path / "plain", [example(video(k)) for k in range(50)])).read_bytes()
    (tmp_path / "named").write_bytes(plain)
    (tmp_path / "a.tfrecord.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    (tmp_path / "unnamed").write_bytes(gzip.compress(plain))
    os.rename(tmp_path / "named", tmp_path / "plain.gz")
    for name in ("a.tfrecord.gz", "unnamed", "plain.gz"):
        rows, bad = rows_of(str(tmp_path / name), VIDEO)
        assert rows == [video_row(k) for k in range(50)]
        assert bad == []


def test_a_record_whose_length_looks_like_gzip(tmp_path: Path) -> None:
    record = PACKED["Example"].FromString(example(video()))
    length = int.from_bytes(b"\x1f\x8b\x08", "little")
    record.features.feature["pad"].bytes_list.value.append(bytes(length - 1000))
    missing = length - len(record.SerializeToString())
    record.features.feature["pad"].bytes_list.value[0] = bytes(length - 1000 + missing)
    data = record.SerializeToString()
    assert len(data) == length
    assert rows_of(write_shard(tmp_path / "a", [data]), VIDEO) == ([video_row()], [])


# ---- what a record may look like


def test_missing_labels_are_no_labels_and_repeated_ones_count_once(tmp_path: Path) -> None:
    records = [example(video(labels=labels)) for labels in (None, [], [7, 7, 2, 7, 2, 9])]
    rows, bad = rows_of(write_shard(tmp_path / "a", records), VIDEO)
    assert [row["labels"] for row in rows] == [[], [], [7, 2, 9]]
    assert bad == []


def test_either_id_name_and_the_first_of_two(tmp_path: Path) -> None:
    records = [video(id=None, video_id=b"old"), video(id=b"new", video_id=b"old"), video(id=None, key=b"own")]
    path = write_shard(tmp_path / "a", [example(record) for record in records])
    rows, bad = rows_of(path, VIDEO)
    assert [row["id"] for row in rows] == ["old", "new"]
    assert "none of id, video_id" in bad[0].reason
    assert "key (1 bytes)" in bad[0].reason
    rows, bad = rows_of(path, RecordSpec(10, vectors={"mean_rgb": 4}, id_names=("key", "video_id")))
    assert [row["id"] for row in rows] == ["old", "old", "own"]


def test_max_frames_keeps_the_first_but_checks_all(tmp_path: Path) -> None:
    context, lists = clip(1, 4)
    lists["rgb"][3] = b"bad"
    records = [sequence_example(*clip(0, 4)), sequence_example(context, lists)]
    spec = RecordSpec(10, frames={"rgb": 4, "audio": 2}, max_frames=2)
    rows, bad = rows_of(write_shard(tmp_path / "a", records), spec)
    whole = clip_row(0, 4)
    assert rows == [{**whole, "rgb": whole["rgb"][:8], "audio": whole["audio"][:4]}]
    assert bad[0].reason == "'rgb', frame 3, has 3 bytes, expected 4 (dataset.features)"


def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def entry(name: str, *values: bytes) -> bytes:
    return field(1, field(1, name.encode()) + b"".join(field(2, value) for value in values))


GROUP = varint(9 << 3 | 3) + varint(5 << 3 | 3) + varint(5 << 3 | 4) + field(2, b"in a group") + varint(9 << 3 | 4)
UNKNOWN = (
    field(15, b"xyz")
    + varint(9 << 3)
    + varint(2**63)
    + varint(3 << 3 | 5)
    + b"1234"
    + varint(8 << 3 | 1)
    + b"12345678"
    + GROUP
)
FLOATS_1 = field(2, field(1, struct.pack("<2f", 1, 2)))
FLOATS_2 = field(2, varint(1 << 3 | 5) + struct.pack("<f", 3) + field(1, struct.pack("<f", 4)))
INTS = field(3, varint(1 << 3) + varint(5) + field(1, varint(6) + varint(7)))
BYTES = field(1, field(1, b"x"))

MERGES = {
    "two parts of one list": [entry("mean_rgb", FLOATS_1 + FLOATS_2)],
    "two values in one entry": [entry("mean_rgb", FLOATS_1, FLOATS_2)],
    "the last entry counts": [entry("mean_rgb", FLOATS_1), entry("mean_rgb", FLOATS_1 + FLOATS_2)],
    "another member of the oneof discards": [entry("mean_rgb", FLOATS_1 + BYTES + FLOATS_1 + FLOATS_2)],
    "the value before the key": [field(1, field(2, FLOATS_1 + FLOATS_2) + field(1, b"mean_rgb"))],
    "the last key counts": [field(1, field(1, b"zzz") + field(2, FLOATS_1 + FLOATS_2) + field(1, b"mean_rgb"))],
    "unknown fields everywhere": [
        UNKNOWN,
        entry("mean_rgb", UNKNOWN + FLOATS_1 + UNKNOWN + FLOATS_2),
        UNKNOWN,
        entry("other", UNKNOWN),
    ],
    "unknown fields in the list": [entry("mean_rgb", field(2, UNKNOWN + field(1, struct.pack("<4f", 1, 2, 3, 4))))],
}


@pytest.mark.parametrize("parts", MERGES.values(), ids=MERGES)
def test_merging_is_protobufs(tmp_path: Path, parts: list[bytes]) -> None:
    parts = [entry("id", field(1, field(1, b"v"))), entry("labels", INTS), *parts]
    spec = RecordSpec(10, vectors={"mean_rgb": 4})
    together = field(1, b"".join(parts))
    apart = UNKNOWN + b"".join(field(1, part) for part in parts)  # occurrences of one message merge
    for record in (together, apart):
        truth = PACKED["Example"].FromString(record).features.feature
        assert list(truth["mean_rgb"].float_list.value) == [1, 2, 3, 4]
        assert list(truth["labels"].int64_list.value) == [5, 6, 7]
        rows, bad = rows_of(write_shard(tmp_path / "a", [record]), spec)
        assert rows == [{"id": "v", "labels": [5, 6, 7], "mean_rgb": [1, 2, 3, 4]}]
        assert bad == []


def test_unknown_field_in_a_map_entry_is_never_guessed_at(tmp_path: Path) -> None:
    """Some implementations of protobuf skip the field, others the entry."""
    bad_entry = field(1, field(1, b"mean_rgb") + UNKNOWN + field(2, FLOATS_1 + FLOATS_2))
    records = [example(video()) + field(1, part) for part in (bad_entry, bad_entry.replace(b"mean_rgb", b"mean_xyz"))]
    rows, bad = rows_of(write_shard(tmp_path / "a", records), VIDEO)
    assert rows == [video_row()]
    assert bad[0].reason.startswith("malformed")


def test_parts_of_a_feature_list_are_joined(tmp_path: Path) -> None:
    def frames(*values: bytes) -> bytes:
        return b"".join(field(1, field(1, field(1, value))) for value in values)

    record = (
        field(2, entry("rgb", frames(b"oooo")))
        + field(1, entry("id", field(1, field(1, b"v"))))
        + field(2, entry("rgb", frames(b"aaaa", b"bbbb"), frames(b"cccc")))
    )
    truth = PACKED["SequenceExample"].FromString(record).feature_lists.feature_list["rgb"]
    assert [f.bytes_list.value[0] for f in truth.feature] == [b"aaaa", b"bbbb", b"cccc"]
    rows, bad = rows_of(write_shard(tmp_path / "a", [record]), RecordSpec(10, frames={"rgb": 4}))
    assert rows == [{"id": "v", "labels": [], "rgb": b"aaaabbbbcccc"}]
    assert bad == []


# ---- records that give no row


BAD_VIDEOS = {
    "no id": (video(id=None), "no id: none of id, video_id"),
    "empty id": (video(id=b""), "'id' is empty"),
    "two ids": (video(id=[b"a", b"b"]), "'id' has 2 values, expected one"),
    "id of another kind": (video(id=[1]), "'id' holds int64, expected bytes"),
    "id not UTF-8": (video(id=b"\xff\xfe"), "'id' is not UTF-8"),
    "label too large": (video(labels=[1, 10]), "label 10 is outside [0, 10): raise dataset.num_classes"),
    "label negative": (video(labels=[-1]), "label -1 is outside [0, 10)"),
    "labels of another kind": (video(labels=[1.0]), "'labels' holds float, expected int64"),
    "vector missing": (video(mean_rgb=None), "no feature 'mean_rgb'; it has "),
    "vector too short": (video(mean_rgb=[1.0]), "'mean_rgb' has 1 values, expected 4"),
    "vector too long": (video(mean_audio=[1.0] * 9), "'mean_audio' has 9 values, expected 3"),
    "vector of another kind": (video(mean_rgb=b"abc"), "'mean_rgb' holds bytes, expected float"),
    "NaN": (video(mean_rgb=[0.0, 1.0, float("nan"), 2.0]), "'mean_rgb', value 2, is nan, expected a finite number"),
    "infinity": (video(mean_audio=[0.0, float("-inf"), 2.0]), "'mean_audio', value 1, is -inf, expected a finite"),
}


@pytest.mark.parametrize(("features", "reason"), BAD_VIDEOS.values(), ids=BAD_VIDEOS)
def test_bad_example(tmp_path: Path, features: dict[str, Any], reason: str) -> None:
    records = [example(video(0)), example(features), example(video(2))]
    rows, bad = rows_of(write_shard(tmp_path / "a", records), VIDEO)
    assert rows == [video_row(0), video_row(2)]
    assert [(b.record, b.offset) for b in bad] == [(1, len(frame(records[0])))]
    assert reason in bad[0].reason


def test_a_missing_feature_is_answered_with_those_present(tmp_path: Path) -> None:
    _, bad = rows_of(write_shard(tmp_path / "a", [example(video())]), RecordSpec(10, vectors={"rgb_mean": 4}))
    assert bad[0].reason.startswith("no feature 'rgb_mean'; it has ")
    for part in ("id (1 bytes)", "labels (2 int64)", "mean_rgb (4 float)", "mean_audio (3 float)"):
        assert part in bad[0].reason


BAD_CLIPS = {
    "frame too long": (clip(rgb=[b"aaaa", b"aaaaa", b"aaaa"]), "'rgb', frame 1, has 5 bytes, expected 4"),
    "frame of another kind": (clip(rgb=[b"aaaa", [1.0], b"aaaa"]), "'rgb', frame 1, holds float, expected bytes"),
    "frame of two values": (clip(rgb=[[b"aaaa", b"aaaa"]]), "'rgb', frame 0, has 2 values, expected one of 4 bytes"),
    "frame counts differ": (clip(audio=[b"aa"] * 2), "'audio' has 2 frames, the list before it 3"),
    "no frame": (clip(rgb=[], audio=[]), "'rgb' has no frame"),
    "list missing": (clip(audio=None), "no feature 'audio'; it has "),
}


@pytest.mark.parametrize(("parts", "reason"), BAD_CLIPS.values(), ids=BAD_CLIPS)
def test_bad_sequence_example(tmp_path: Path, parts: tuple[Any, Any], reason: str) -> None:
    records = [sequence_example(*clip(0)), sequence_example(*parts), sequence_example(*clip(2))]
    rows, bad = rows_of(write_shard(tmp_path / "a", records), FRAME)
    assert rows == [clip_row(0), clip_row(2)]
    assert [(b.record, b.offset) for b in bad] == [(1, len(frame(records[0])))]
    assert reason in bad[0].reason


MALFORMED = {
    "length past the end": field(1, b"abc")[:-1],
    "varint past the end": b"\x80",
    "varint of eleven bytes": varint(9 << 3) + b"\xff" * 10 + b"\x01",
    "field number 0": b"\x02\x00",
    "wire type 6": varint(9 << 3 | 6),
    "end of no group": varint(9 << 3 | 4),
    "group without an end": varint(9 << 3 | 3),
    "group with another's end": varint(9 << 3 | 3) + varint(8 << 3 | 4),
    "groups too deep": varint(9 << 3 | 3) * 101 + varint(9 << 3 | 4) * 101,
    "length of 2^64 - 1": b"\x0a" + b"\xff" * 9 + b"\x01",
    "fixed64 past the end": varint(9 << 3 | 1) + b"1234567",
    "packed floats of 5 bytes": field(1, entry("mean_rgb", field(2, field(1, b"12345")))),
    "packed varint past its end": field(1, entry("labels", field(3, field(1, b"\x01\x80")))),
}


@pytest.mark.parametrize("damage", MALFORMED.values(), ids=MALFORMED)
def test_malformed_protobuf(tmp_path: Path, damage: bytes) -> None:
    good = example(video())
    with pytest.raises(Exception, match="parsing"):
        PACKED["Example"].FromString(good + damage)
    rows, bad = rows_of(write_shard(tmp_path / "a", [good, good + damage, good]), VIDEO)
    assert rows == [video_row(), video_row()]
    assert bad[0].reason.startswith("malformed protobuf")
    assert bad[0].record == 1


def test_utf8_is_pythons(tmp_path: Path) -> None:
    ids = [bytes([first, second]) for first in range(128, 256) for second in range(0, 256, 3)]
    ids += [chr(c).encode("utf-8", "surrogatepass") for c in range(1, 0x110000, 97)]
    ids += [b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"a\xc3", b"\xf0\x9f\x98"]
    rows, bad = rows_of(write_shard(tmp_path / "a", [example(video(id=i)) for i in ids]), VIDEO)

    def decoded(data: bytes) -> str | None:
        try:
            return data.decode()
        except UnicodeDecodeError:
            return None

    assert [row["id"] for row in rows] == [text for text in map(decoded, ids) if text is not None]
    assert len(rows) + len(bad) == len(ids)


def test_float16_overflow_is_rejected_and_the_rest_is_numpys(tmp_path: Path) -> None:
    below = float(np.nextafter(np.float32(65520), np.float32(0)))
    vectors = [[65504.0, -below, 1e-8, 0.1], [65520.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -1e30]]
    path = write_shard(tmp_path / "a", [example(video(mean_rgb=vector)) for vector in vectors])
    bad: list[BadRecord] = []
    spec = RecordSpec(10, vectors={"mean_rgb": 4}, dtype="float16")
    (batch,) = read_batches(path, spec, reject=bad.append)
    assert batch.vectors["mean_rgb"].dtype == np.float16
    assert np.array_equal(batch.vectors["mean_rgb"], np.array(vectors[:1], np.float32).astype(np.float16))
    assert [b.reason for b in bad] == [
        "'mean_rgb', value 0, is 65520.0, expected at most 65504 in magnitude (float16)",
        f"'mean_rgb', value 3, is {float(np.float32(-1e30))}, expected at most 65504 in magnitude (float16)",
    ]


# ---- shards of the other kind


def test_sequence_examples_as_examples(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", [sequence_example(*clip(k)) for k in range(3)])
    with pytest.raises(
        SchemaError, match=r"record 0 at byte 0 is a SequenceExample.*rgb \(3 frames of 4 bytes\).*level: frame"
    ):
        rows_of(path, VIDEO)


def test_sequence_examples_that_hold_what_an_example_would(tmp_path: Path) -> None:
    """They parse as Examples with every feature there, and their frames would be gone."""
    path = write_shard(tmp_path / "a", [sequence_example(video(), {"rgb": [b"aaaa"]})])
    with pytest.raises(SchemaError, match="SequenceExample"):
        rows_of(path, VIDEO)


def test_examples_as_sequence_examples(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", [example(video(k)) for k in range(3)])
    with pytest.raises(SchemaError, match=r"record 0 at byte 0 is an Example.*mean_rgb \(4 float\).*level: video"):
        rows_of(path, FRAME)


# ---- damaged framing


def shard_of(num_records: int) -> tuple[list[bytes], list[int]]:
    frames = [frame(example(video(k))) for k in range(num_records)]
    return frames, [sum(len(f) for f in frames[:k]) for k in range(num_records + 1)]


def test_wrong_data_checksum_costs_one_record(tmp_path: Path) -> None:
    frames, offsets = shard_of(5)
    damaged = bytearray(b"".join(frames))
    damaged[offsets[2] + 30] ^= 1
    (tmp_path / "a").write_bytes(damaged)
    rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
    assert rows == [video_row(k) for k in (0, 1, 3, 4)]
    assert bad == [BadRecord("checksum of the record is wrong", offsets[2], 2)]


@pytest.mark.parametrize("byte", range(12))
def test_wrong_length_costs_what_stands_before_the_next_frame(tmp_path: Path, byte: int) -> None:
    frames, offsets = shard_of(6)
    damaged = bytearray(b"".join(frames))
    damaged[offsets[2] + byte] ^= 0x41
    damaged[offsets[4] + 30] ^= 1
    (tmp_path / "a").write_bytes(damaged)
    rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
    assert rows == [video_row(k) for k in (0, 1, 3, 5)]
    lost = f"checksum of the record length is wrong: the {len(frames[2])} bytes up to the next whole frame are lost"
    assert bad == [BadRecord(lost, offsets[2], None), BadRecord("checksum of the record is wrong", offsets[4], None)]


def test_bytes_put_in_and_taken_out(tmp_path: Path) -> None:
    frames, offsets = shard_of(6)
    (tmp_path / "a").write_bytes(
        frames[0] + b"between" + frames[1] + frames[2][7:] + frames[3] + bytes(10_000) + frames[4] + frames[5]
    )
    rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
    assert rows == [video_row(k) for k in (0, 1, 3, 4, 5)]
    starts = [offsets[1], offsets[2] + 7, offsets[4] + 7 - 7]
    assert [b.offset for b in bad] == starts
    assert [f"the {n} bytes" in b.reason for n, b in zip((7, len(frames[2]) - 7, 10_000), bad, strict=True)] == [
        True
    ] * 3


def test_a_header_alone_does_not_stop_the_search(tmp_path: Path) -> None:
    """A right header before a wrong record is no place to go on from."""
    frames, _ = shard_of(4)
    header = struct.pack("<Q", 5000)
    header += struct.pack("<I", masked(header))
    (tmp_path / "a").write_bytes(frames[0] + b"?" * 20 + header + frames[1] + frames[2] + frames[3])
    rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
    assert rows == [video_row(k) for k in range(4)]
    assert [b.offset for b in bad] == [len(frames[0])]
    assert "the 32 bytes up to the next whole frame" in bad[0].reason


def test_search_across_many_buffers(tmp_path: Path) -> None:
    frames, _ = shard_of(2)
    noise = np.random.default_rng(0).bytes(3 * CHUNK_BYTES + 5)
    (tmp_path / "a").write_bytes(frames[0] + noise + frames[1])
    rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
    assert rows == [video_row(0), video_row(1)]
    assert f"the {len(noise)} bytes" in bad[0].reason


def test_every_truncation(tmp_path: Path) -> None:
    frames, offsets = shard_of(2)
    whole = b"".join(frames)
    for size in range(1, len(whole)):
        (tmp_path / "a").write_bytes(whole[:size])
        rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
        num_whole = sum(size >= end for end in offsets[1:])
        assert rows == [video_row(k) for k in range(num_whole)]
        if size in offsets:
            assert bad == []
        else:
            assert [(b.offset, b.record) for b in bad] == [(offsets[num_whole], num_whole)]
            assert bad[0].reason.startswith("truncated: ")


def test_absurd_length_without_verification_is_no_allocation(tmp_path: Path) -> None:
    frames, offsets = shard_of(3)
    for length in (2**63, 2**64 - 1, MAX_RECORD_BYTES + 1):
        damaged = frames[0] + struct.pack("<Q", length) + frames[1][8:] + frames[2]
        (tmp_path / "a").write_bytes(damaged)
        rows, bad = rows_of(str(tmp_path / "a"), VIDEO, verify_crc=False)
        assert rows == [video_row(0), video_row(2)]
        assert bad[0].offset == offsets[1]
        assert f"absurd record length {length}" in bad[0].reason
    (tmp_path / "a").write_bytes(frames[0] + struct.pack("<Q", MAX_RECORD_BYTES) + frames[1][8:])
    rows, bad = rows_of(str(tmp_path / "a"), VIDEO, verify_crc=False)
    assert rows == [video_row(0)]
    assert "truncated" in bad[0].reason


def test_without_verification_checksums_don_t_matter(tmp_path: Path) -> None:
    frames, _ = shard_of(3)
    (tmp_path / "a").write_bytes(b"".join(f[:8] + b"none" + f[12:-4] + b"none" for f in frames))
    assert rows_of(str(tmp_path / "a"), VIDEO, verify_crc=False) == ([video_row(k) for k in range(3)], [])


def test_files_that_are_no_shards(tmp_path: Path) -> None:
    for content, reason in (
        (b"", "the file is empty"),
        (b"id,labels\n1,2\n" * 100_000, "not a TFRecord file"),
        (b"short", "truncated: 5 bytes are left"),
        (bytes(4096), "not a TFRecord file"),
        (gzip.compress(b""), "the file is empty"),
        (gzip.compress(b"text" * 100), "not a TFRecord file"),
        (b"\x1f\x8b\x08", "damaged gzip"),
    ):
        (tmp_path / "a").write_bytes(content)
        rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
        assert rows == []
        assert len(bad) == 1
        assert reason in bad[0].reason
        assert (bad[0].offset, bad[0].record) in ((0, None), (0, 0))
    with pytest.raises(FileNotFoundError):
        rows_of(str(tmp_path / "missing"), VIDEO)


def test_damaged_gzip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [example(video(k, pad=rng.bytes(2000))) for k in range(200)]
    packed = gzip.compress(b"".join(frame(record) for record in records))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    wrong_sum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    for damaged in (packed[: len(packed) // 2], bytes(flipped), packed[:-4], wrong_sum, packed + b"trailing"):
        (tmp_path / "a").write_bytes(damaged)
        rows, bad = rows_of(str(tmp_path / "a"), VIDEO)
        good = [video_row(k) for k in range(200)]
        assert rows == [row for row in good if row in rows]
        assert len(rows) > 80
        assert any("damaged gzip" in b.reason for b in bad)


def test_damage_ends_the_run_when_reject_raises(tmp_path: Path) -> None:
    def reject(bad: BadRecord) -> None:
        raise ValueError(bad.reason)

    path = write_shard(tmp_path / "a", [example(video()), example(video(labels=[11]))])
    with pytest.raises(ValueError, match="label 11"):
        list(read_batches(path, VIDEO, reject=reject))


# ---- Arrow, contents, settings


def test_arrow_has_the_schema_and_shares_memory(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", [sequence_example(*clip(k, 1 + k)) for k in range(5)])
    (batch,) = read_batches(path, FRAME, reject=pytest.fail)
    table = batch.to_arrow(FRAME)
    table.validate(full=True)
    assert table.schema == arrow_schema(FRAME.columns)
    assert table.schema.names == ["id", "labels", "rgb", "audio", "num_frames"]
    rows = [clip_row(k, 1 + k) for k in range(5)]
    assert table.to_pylist() == [{**row, "num_frames": 1 + k} for k, row in enumerate(rows)]
    for name in ("rgb", "audio"):
        assert table[name].buffers()[2].address == batch.frames[name].ctypes.data

    path = write_shard(tmp_path / "b", [example(video(k)) for k in range(5)])
    (batch,) = read_batches(path, VIDEO, reject=pytest.fail)
    table = batch.to_arrow(VIDEO)
    table.validate(full=True)
    assert table.schema == arrow_schema(VIDEO.columns)
    assert table["labels"].to_pylist() == [video_row(k)["labels"] for k in range(5)]
    assert np.array_equal(table["mean_rgb"].to_numpy_ndarray(), batch.vectors["mean_rgb"])
    assert table["mean_rgb"].storage.flatten().buffers()[1].address == batch.vectors["mean_rgb"].ctypes.data
    assert table["id"].type == pa.string()


def test_read_contents(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a", [b"", example(video(0), UNPACKED), sequence_example(*clip(1, 2))])
    nothing, one, two = read_contents(path, 5)
    assert str(nothing) == "no feature"
    assert one.features == {
        "id": ("bytes", 1),
        "labels": ("int64", 2),
        "mean_rgb": ("float", 4),
        "mean_audio": ("float", 3),
    }
    assert two.feature_lists == {"rgb": (2, "bytes", 4), "audio": (2, "bytes", 2)}
    frames, _ = shard_of(3)
    (tmp_path / "b").write_bytes(b"damage" + frames[0][:40] + frames[1])
    assert [set(found.features) for found in read_contents(str(tmp_path / "b"), 5)] == [set(video())]
    (tmp_path / "c").write_bytes(b"no shard" * 100)
    with pytest.raises(ValueError, match="no TFRecord frame"):
        read_contents(str(tmp_path / "c"), 5)


def test_settings_that_make_no_sense() -> None:
    for settings, reason in (
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 1, "id_names": ()}, "id name"),
        ({"num_classes": 1, "vectors": {"v": 0}}, "'v' of size 0"),
        ({"num_classes": 1, "vectors": {"labels": 3}}, "two features"),
        ({"num_classes": 1, "vectors": {"a": 3}, "frames": {"a": 3}}, "two features"),
        ({"num_classes": 1, "max_frames": 0}, "max_frames=0"),
    ):
        with pytest.raises(ValueError, match=reason):
            RecordSpec(**settings)


def test_real_audioset_shards(real_data: Path) -> None:
    """AudioSet's own embeddings: every label and byte as protobuf reads them."""
    spec = RecordSpec(num_classes=527, frames={"audio_embedding": 128})
    paths = sorted((real_data / "audioset_tfrecord").rglob("*.tfrecord"))
    assert paths
    num_rows = 0
    for path in paths:
        data = path.read_bytes()
        truth, i = [], 0
        while i < len(data):
            (length,) = struct.unpack_from("<Q", data, i)
            record = PACKED["SequenceExample"].FromString(data[i + 12 : i + 12 + length])
            context = record.context.feature
            embedding = record.feature_lists.feature_list["audio_embedding"].feature
            truth.append(
                {
                    "id": context["video_id"].bytes_list.value[0].decode(),
                    "labels": list(context["labels"].int64_list.value),
                    "audio_embedding": b"".join(f.bytes_list.value[0] for f in embedding),
                }
            )
            i += length + 16
        assert rows_of(str(path), spec) == (truth, [])
        num_rows += len(truth)
    assert num_rows > 1000


def test_works_where_no_cache_folder_can_be_written(tmp_path: Path) -> None:
    """The package's own __pycache__ and the home folder are files here, so numba has nowhere to write."""
    source = Path(tfrecord.__file__).parent.parent
    package = tmp_path / "mmray"
    for path in [*source.glob("*.py"), *(source / "features").glob("*.py")]:
        target = package / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for folder in (package, package / "features"):
        (folder / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", "from mmray.features.tfrecord import masked_crc32c; print(masked_crc32c(b'abc'))"],
        env={**environment, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(masked(b"abc")), done.stderr
