"""Protobuf's wire format: a message is fields, a field is a tag (number << 3 | wire type) and a payload.

For compiled callers. `buffer` is a uint8 array or pointer; no byte outside the `[i, stop)` given is read, whatever a
length says. https://protobuf.dev/programming-guides/encoding
"""
# mypy: disable-error-code="no-any-return, return-value"

from __future__ import annotations

from typing import Any

import numpy as np

from mmray.features.native import called, compiled, inlined

# Tags: field number << 3 | wire type.
VARINT_1, BYTES_1, BYTES_2, BYTES_3, FIXED32_1 = 1 << 3, 1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2, 1 << 3 | 5
BAD_TAG = -1
MAX_GROUP_DEPTH = 100  # protobuf's own limit


@inlined
def read_varint(buffer: Any, i: int, stop: int) -> tuple[np.uint64, int]:
    """The number at byte i and the position after it; position -1 when it passes `stop` or ten bytes."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while i < stop and shift < np.uint64(70):
        byte = np.uint64(buffer[i])
        i += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            return value, i
        shift += np.uint64(7)
    return value, -1


@inlined
def read_tag(buffer: Any, i: int, stop: int) -> tuple[int, int, int]:
    """The tag at byte i, start and stop of its payload (none for the marks of a group); `BAD_TAG` when malformed."""
    number, start = read_varint(buffer, i, stop)
    if start < 0 or start - i > 5 or number >> np.uint64(32) or number < np.uint64(8):
        return BAD_TAG, 0, 0
    tag = np.int64(number)
    wire_type = tag & 7
    if wire_type == 2:
        length, start = read_varint(buffer, start, stop)
        if start < 0 or length > np.uint64(stop - start):
            return BAD_TAG, 0, 0
        return tag, start, start + np.int64(length)
    if wire_type == 0:
        _, end = read_varint(buffer, start, stop)
        return (tag, start, end) if end >= 0 else (BAD_TAG, 0, 0)
    if wire_type == 3 or wire_type == 4:
        return tag, start, start
    size = 4 if wire_type == 5 else 8
    if wire_type > 5 or stop - start < size:
        return BAD_TAG, 0, 0
    return tag, start, start + size


@called
def skip_group(buffer: Any, i: int, stop: int, tag: int) -> int:
    """The position after the group whose start mark, `tag`, ends at byte i; -1 when it is malformed."""
    open_fields = np.empty(MAX_GROUP_DEPTH, np.int64)
    open_fields[0] = tag >> 3
    depth = 1
    while depth > 0:
        tag, _, i = read_tag(buffer, i, stop)
        if tag == BAD_TAG:
            return -1
        if tag & 7 == 3:
            if depth == MAX_GROUP_DEPTH:
                return -1
            open_fields[depth] = tag >> 3
            depth += 1
        elif tag & 7 == 4:
            depth -= 1
            if open_fields[depth] != tag >> 3:
                return -1
    return i


@inlined
def next_field(buffer: Any, i: int, stop: int) -> tuple[int, int, int]:
    """The field at byte i of a message that ends at `stop`: tag, start and stop of the payload.

    The next field starts where the payload stops. `BAD_TAG` when the message is malformed there.
    """
    tag, start, end = read_tag(buffer, i, stop)
    if tag & 7 == 3:
        end = skip_group(buffer, end, stop, tag)
        return (tag, start, end) if end >= 0 else (BAD_TAG, 0, 0)
    if tag & 7 == 4:
        return BAD_TAG, 0, 0
    return tag, start, end


@compiled
def field_at(buffer: Any, i: int, stop: int) -> tuple[int, int, int]:
    """`next_field` for Python."""
    return next_field(buffer, i, stop)


@called
def is_utf8(buffer: Any, start: int, stop: int) -> bool:
    """Whether `buffer[start:stop]` is UTF-8: shortest forms only, no surrogates (Unicode 15, table 3-7)."""
    i = start
    while i < stop:
        lead = buffer[i]
        i += 1
        if lead < 0x80:
            continue
        if lead < 0xC2 or lead > 0xF4:
            return False
        num_more = 1 if lead < 0xE0 else 2 if lead < 0xF0 else 3
        if num_more > stop - i:
            return False
        low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if buffer[i] < low or buffer[i] > high:
            return False
        for k in range(i + 1, i + num_more):
            if buffer[k] & 0xC0 != 0x80:
                return False
        i += num_more
    return True
