"""Independent truth for TFRecord tests: messages by google.protobuf, checksums by google_crc32c."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED


def _messages(packed: bool) -> dict[str, Any]:
    """The classes of tensorflow/core/example/*.proto, writing number lists packed or not."""
    package = "packed" if packed else "unpacked"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")

    def add(parent: Any, name: str, *fields: tuple[str, int, int, int | str]) -> Any:
        message = parent.add(name=name)
        for field_name, number, label, kind in fields:
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kind
        return message

    def add_map(name: str, field: str, value: str) -> None:
        message = add(file.message_type, name, (field, 1, _MANY, f"{name}.Entry"))
        entry = add(message.nested_type, "Entry", ("key", 1, _ONE, _Field.TYPE_STRING), ("value", 2, _ONE, value))
        entry.options.map_entry = True

    add(file.message_type, "BytesList", ("value", 1, _MANY, _Field.TYPE_BYTES))
    for name, kind in (("FloatList", _Field.TYPE_FLOAT), ("Int64List", _Field.TYPE_INT64)):
        add(file.message_type, name, ("value", 1, _MANY, kind)).field[0].options.packed = packed
    kinds = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    feature = add(file.message_type, "Feature", *((name, k + 1, _ONE, kind) for k, (name, kind) in enumerate(kinds)))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    add_map("Features", "feature", "Feature")
    add(file.message_type, "FeatureList", ("feature", 1, _MANY, "Feature"))
    add_map("FeatureLists", "feature_list", "FeatureList")
    add(file.message_type, "Example", ("features", 1, _ONE, "Features"))
    add(
        file.message_type,
        "SequenceExample",
        ("context", 1, _ONE, "Features"),
        ("feature_lists", 2, _ONE, "FeatureLists"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = ("Feature", "Features", "FeatureList", "Example", "SequenceExample")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in names}


PACKED = _messages(packed=True)
UNPACKED = _messages(packed=False)


def _fill(feature: Any, value: Any) -> None:
    values = list(value) if not isinstance(value, bytes) else [value]
    if values and isinstance(values[0], bytes):
        feature.bytes_list.value.extend(values)
    elif values and isinstance(values[0], int):
        feature.int64_list.value.extend(values)
    elif values:
        feature.float_list.value.extend(float(v) for v in values)
    else:
        feature.int64_list.SetInParent()


def example(features: dict[str, Any], classes: dict[str, Any] = PACKED) -> bytes:
    message = classes["Example"]()
    for name, value in features.items():
        _fill(message.features.feature[name], value)
    return bytes(message.SerializeToString())


def sequence_example(context: dict[str, Any], lists: dict[str, list[bytes]], classes: dict[str, Any] = PACKED) -> bytes:
    message = classes["SequenceExample"]()
    for name, value in context.items():
        _fill(message.context.feature[name], value)
    for name, frames in lists.items():
        target = message.feature_lists.feature_list[name]
        for frame in frames:
            _fill(target.feature.add(), frame)
    return bytes(message.SerializeToString())


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(record: bytes) -> bytes:
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked(length)) + record + struct.pack("<I", masked(record))


def write_shard(path: Path, records: list[bytes]) -> str:
    path.write_bytes(b"".join(frame(record) for record in records))
    return str(path)
