"""Write TFRecord files of `tf.train.Example` and `tf.train.SequenceExample`, with no TensorFlow or protobuf.

The messages, from TensorFlow's example.proto and feature.proto (field numbers in brackets):

    Example         features[1]: Features
    SequenceExample context[1]: Features, feature_lists[2]: FeatureLists
    Features        feature[1]: map<string, Feature>
    FeatureLists    feature_list[1]: map<string, FeatureList>
    FeatureList     feature[1]: repeated Feature
    Feature         bytes_list[1] | float_list[2] | int64_list[3]
    *List           value[1]: repeated bytes, or packed float32, or packed int64 varints

Every one of these fields is length-delimited. Map entries are written in the order of the mapping given.

A record of the file is: length (uint64), masked CRC32C of the length (uint32), the message, masked CRC32C of the
message (uint32); all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmray.features.tfrecord import masked_crc32c
from mmray.files import written_whole

Value = bytes | str | int | float | Sequence[bytes] | Sequence[str] | Sequence[int] | Sequence[float] | np.ndarray

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")


def encode_example(features: Mapping[str, Value]) -> bytes:
    """The bytes of a `tf.train.Example` with these features.

    A value or a flat list of them becomes a bytes list (bytes, or str as UTF-8), an int64 list (Python or NumPy
    integers) or a float list (floats, rounded to float32; arrays flattened row-major). ValueError for an empty
    Python list, whose kind is unknown (pass an empty array), and for integers that int64 can't hold.
    """
    return _field(1, _features(features))


def encode_sequence_example(context: Mapping[str, Value], feature_lists: Mapping[str, Iterable[Value]]) -> bytes:
    """The bytes of a `tf.train.SequenceExample`: one value (as for `encode_example`) per step of a feature list.

    Lists of different lengths are written as they are: TensorFlow doesn't ask for equal ones. ValueError as for
    `encode_example`.
    """
    lists = (
        _entry(name, b"".join(_field(1, _feature(name, value)) for value in steps))
        for name, steps in feature_lists.items()
    )
    return _field(1, _features(context)) + _field(2, b"".join(lists))


def write_tfrecord(path: Path, records: Iterable[bytes]) -> int:
    """Write `records` to the TFRecord file `path` and return how many there were.

    The file appears at `path` when it is whole: when the iterable or the disk fails, what stood there still does.
    """
    num_records = 0
    with written_whole(path) as aside, aside.open("wb", buffering=1 << 20) as file:
        for record in records:
            length = _LENGTH.pack(len(record))
            file.write(length + _CRC.pack(masked_crc32c(length)))
            file.write(record)
            file.write(_CRC.pack(masked_crc32c(record)))
            num_records += 1
    return num_records


def _features(features: Mapping[str, Value]) -> bytes:
    return b"".join([_entry(name, _feature(name, value)) for name, value in features.items()])


def _entry(name: str, message: bytes) -> bytes:
    """One map entry, which the wire shows as a repeated message {key[1], value[2]}, as field 1 of its parent."""
    return _field(1, _field(1, name.encode()) + _field(2, message))


def _feature(name: str, value: Value) -> bytes:
    if isinstance(value, bytes):  # by far the most frequent: a frame
        return _field(1, _field(1, value))
    if isinstance(value, str):
        return _field(1, _field(1, value.encode()))
    if isinstance(value, Sequence):
        if not value:
            raise ValueError(
                f"feature {name!r}: an empty list has no kind; pass an empty array, as in np.empty(0, np.int64)"
            )
        strings = [item.encode() if isinstance(item, str) else item for item in value if isinstance(item, bytes | str)]
        if len(strings) == len(value):
            return _field(1, b"".join([_field(1, item) for item in strings]))
    array = np.asarray(value)
    if array.dtype.kind == "f":
        packed = array.astype("<f4").tobytes()
        return _field(2, _field(1, packed) if packed else b"")
    if array.dtype.kind in "iu" and (array.dtype != np.uint64 or not array.size or array.max() < 1 << 63):
        packed = b"".join([_varint(number) for number in array.ravel().tolist()])
        return _field(3, _field(1, packed) if packed else b"")
    raise ValueError(
        f"feature {name!r}: {value!r} is no bytes, int64 or float list; give bytes or str, integers from "
        "-2**63 to 2**63 - 1, or floats, and only one kind in a list"
    )


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field: the tag (wire type 2), the length, the payload. `number` below 16."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


@lru_cache(maxsize=1 << 14)
def _varint(number: int) -> bytes:
    """Base-128, least significant group first; a negative number as its 64-bit two's complement: ten bytes."""
    number &= (1 << 64) - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
