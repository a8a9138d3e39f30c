"""The messages against protobuf (descriptors built here from TensorFlow's .proto), the frames against google-crc32c."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from mmray.features.tfrecord_write import encode_example, encode_sequence_example, write_tfrecord

F = descriptor_pb2.FieldDescriptorProto


def tensorflow_messages() -> dict[str, Any]:
    """tf.train.Example and SequenceExample as protobuf classes."""
    file = descriptor_pb2.FileDescriptorProto(name="tf_example.proto", package="tf", syntax="proto3")

    def message(name: str, *fields: F, parent: Any = None) -> Any:
        new = (parent.nested_type if parent is not None else file.message_type).add(name=name)
        new.field.extend(fields)
        return new

    def field(name: str, number: int, kind: int | str, repeated: bool = False, **options: Any) -> F:
        new = F(name=name, number=number, label=F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL, **options)
        if isinstance(kind, str):
            new.type, new.type_name = F.TYPE_MESSAGE, f".tf.{kind}"
        else:
            new.type = kind
        return new

    def map_of(name: str, entry: str, value: str) -> None:
        parent = message(name, field(entry, 1, f"{name}.Entry", repeated=True))
        parent.nested_type.add(name="Entry", options={"map_entry": True}).field.extend(
            [field("key", 1, F.TYPE_STRING), field("value", 2, value)]
        )

    packed = descriptor_pb2.FieldOptions(packed=True)
    message("BytesList", field("value", 1, F.TYPE_BYTES, repeated=True))
    message("FloatList", field("value", 1, F.TYPE_FLOAT, repeated=True, options=packed))
    message("Int64List", field("value", 1, F.TYPE_INT64, repeated=True, options=packed))
    feature = message(
        "Feature",
        field("bytes_list", 1, "BytesList", oneof_index=0),
        field("float_list", 2, "FloatList", oneof_index=0),
        field("int64_list", 3, "Int64List", oneof_index=0),
    )
    feature.oneof_decl.add(name="kind")
    message("FeatureList", field("feature", 1, "Feature", repeated=True))
    map_of("Features", "feature", "Feature")
    map_of("FeatureLists", "feature_list", "FeatureList")
    message("Example", field("features", 1, "Features"))
    message("SequenceExample", field("context", 1, "Features"), field("feature_lists", 2, "FeatureLists"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tf.{name}"))
        for name in ("Example", "SequenceExample")
    }


TF = tensorflow_messages()
INT64 = st.integers(-(2**63), 2**63 - 1)


def test_example_parses_to_what_was_meant() -> None:
    rgb = np.linspace(-2, 2, 1024, dtype=np.float32)
    encoded = encode_example(
        {
            "id": b"a\xff",
            "name": "naïve",
            "labels": [3, 4715, -1],
            "mean_rgb": rgb,
            "tags": ["x", b"y"],
            "k": 7,
            "z": 0.5,
        }
    )
    got = TF["Example"].FromString(encoded).features.feature
    assert list(got["id"].bytes_list.value) == [b"a\xff"]
    assert got["name"].bytes_list.value[0].decode() == "naïve"
    assert list(got["labels"].int64_list.value) == [3, 4715, -1]
    np.testing.assert_array_equal(np.array(got["mean_rgb"].float_list.value, np.float32), rgb)
    assert list(got["tags"].bytes_list.value) == [b"x", b"y"]
    assert list(got["k"].int64_list.value) == [7]
    assert list(got["z"].float_list.value) == [0.5]
    assert len(got) == 7


@pytest.mark.parametrize("value", [b"v", [b"a", b""], [1, -2], [0.25], np.arange(300), np.zeros(128, np.float32)])
def test_bytes_equal_those_of_protobuf(value: Any) -> None:
    """With one feature there is one order of the map, so the encodings must agree byte for byte."""
    kind, items = "int64_list", value
    if isinstance(value, bytes):
        kind, items = "bytes_list", [value]
    elif isinstance(value[0], bytes):
        kind = "bytes_list"
    elif isinstance(value[0], float | np.floating):
        kind = "float_list"
    message = TF["Example"]()
    getattr(message.features.feature["f"], kind).value.extend(items)
    assert encode_example({"f": value}) == message.SerializeToString()


@given(st.lists(INT64, min_size=1))
def test_any_int64_survives(numbers: list[int]) -> None:
    feature = TF["Example"].FromString(encode_example({"n": numbers})).features.feature["n"]
    assert list(feature.int64_list.value) == numbers


def test_packed_wire_format_by_hand() -> None:
    """-1 is ten bytes of varint; floats and ints are one packed field each, not one field a value."""
    minus_one = b"\xff" * 9 + b"\x01"
    int_list = b"\x0a\x0b" + b"\x05" + minus_one
    feature = b"\x1a\x0d" + int_list
    entry = b"\x0a\x01n" + b"\x12\x0f" + feature
    assert encode_example({"n": [5, -1]}) == b"\x0a\x16" + b"\x0a\x14" + entry


def test_sequence_example_parses_to_what_was_meant() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 1024), dtype=np.uint8)
    encoded = encode_sequence_example(
        {"id": "AbCd", "labels": np.empty(0, np.int64)},
        {"rgb": [frame.tobytes() for frame in rgb], "times": [[0, 1], [2]], "none": []},
    )
    got = TF["SequenceExample"].FromString(encoded)
    assert got.context.feature["id"].bytes_list.value[0] == b"AbCd"
    assert got.context.feature["labels"].WhichOneof("kind") == "int64_list"
    assert not got.context.feature["labels"].int64_list.value
    lists = got.feature_lists.feature_list
    frames = [np.frombuffer(f.bytes_list.value[0], np.uint8) for f in lists["rgb"].feature]
    np.testing.assert_array_equal(np.stack(frames), rgb)
    assert [list(f.int64_list.value) for f in lists["times"].feature] == [[0, 1], [2]]
    assert "none" in lists
    assert not lists["none"].feature


@pytest.mark.parametrize(
    "value", [[], [2**63], [-(2**63) - 1], np.array([2**63], np.uint64), [None], ["a", 1], np.array([1j])]
)
def test_what_no_list_can_hold_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match="'labels'"):
        encode_example({"labels": value})


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_frames_of_the_file(tmp_path: Path) -> None:
    records = [b"", b"one", bytes(range(256)) * 20]
    assert write_tfrecord(tmp_path / "a.tfrecord", iter(records)) == 3
    expected = b""
    for record in records:
        length = struct.pack("<Q", len(record))
        expected += length + struct.pack("<I", masked(length)) + record + struct.pack("<I", masked(record))
    assert (tmp_path / "a.tfrecord").read_bytes() == expected
    assert [p.name for p in tmp_path.iterdir()] == ["a.tfrecord"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    write_tfrecord(path, [b"whole"])
    before = path.read_bytes()

    def broken() -> Any:
        yield b"half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_tfrecord(path, broken())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.tfrecord"]
