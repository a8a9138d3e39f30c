"""From the bytes of many TFRecord frames straight to columns: the compiled half of `mmray.features.tfrecord`.

A frame is: uint64 length, uint32 masked CRC-32C of those 8 bytes, the record, uint32 masked CRC-32C of the record.
A record is a protobuf message of one of two kinds, told apart by field 2 only:

    Example         { Features features = 1 }
    SequenceExample { Features context  = 1;  FeatureLists feature_lists = 2 }
    Features        { map<string, Feature>     feature      = 1 }
    FeatureLists    { map<string, FeatureList> feature_list = 1 }
    FeatureList     { repeated Feature feature = 1 }
    map<K, V>       repeated entries { K key = 1; V value = 2 }
    Feature         { oneof { BytesList = 1; FloatList = 2; Int64List = 3 } }, each list { repeated value = 1 }

Merging is protobuf's: of map entries with one key the last counts; parts of one list are joined; another member of the
oneof discards what came before; packed and unpacked numbers mix; unknown fields are skipped, but for one in the map
entry of a wanted feature, on which implementations of protobuf disagree: that record is malformed. A record is walked
twice: once from entry to entry, noting the last one of each wanted name, then through those entries.

No byte outside `[start, stop)` of the buffer is read, whatever a length says. Each function gives a status; a record
that is not `OK` writes nothing that counts, and `detail` says what was wrong with which feature.
"""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mmray.features.crc32c import masked_crc32c
from mmray.features.native import called, compiled, copy_bytes, inlined, load_u32, load_u64, pointer
from mmray.features.protobuf_wire import (
    BAD_TAG,
    BYTES_1,
    BYTES_2,
    BYTES_3,
    FIXED32_1,
    VARINT_1,
    is_utf8,
    next_field,
    read_varint,
)  # fmt: skip

HEADER_BYTES = 12  # length and its checksum
FRAME_BYTES = 16  # a frame without its record
MAX_RECORD_BYTES = 1 << 28  # a longer record is a damaged length: the longest real one has less than a mebibyte

# Why `read_records` came back, in order: nothing wrong; framing; the record. `detail` is (feature, index, value).
OK, NEED_BYTES, BATCH_FULL = 0, 1, 2
BAD_LENGTH_CRC, ABSURD_LENGTH, BAD_DATA_CRC = 10, 11, 12
MALFORMED, IS_SEQUENCE_EXAMPLE, NO_ID, MISSING, WRONG_KIND = 20, 21, 22, 23, 24
NUM_VALUES, BAD_UTF8, BAD_LABEL, BAD_FLOAT, FRAME_BYTES_WRONG, FRAME_COUNT = 25, 26, 27, 28, 29, 30

BYTES_LIST, FLOAT_LIST, INT64_LIST = BYTES_1, BYTES_2, BYTES_3


# What the parser is handed. Inside compiled code the arrays are pointers; `read_records` takes plain tuples of their
# fields, for a named tuple sends every call from Python through numba's slow path.


class Plan(NamedTuple):
    """What to read. A *slot* is a wanted name: first those an id may have, then the labels', vectors', frame lists'."""

    names: Any  # uint8: all names, end to end
    name_ends: Any  # int64, a slot each
    kinds: Any  # int64, a slot each: BYTES_LIST, FLOAT_LIST or INT64_LIST
    sizes: Any  # int64, a slot each: floats of a vector, bytes of a frame, else 0
    num_id_names: int
    num_context: int  # slots that stand in field 1 of a record
    num_slots: int  # the others stand in field 2
    num_classes: int
    max_frames: int  # frames kept of a record
    max_float_bits: int  # bits of the largest float32 allowed; beyond it also infinities and NaN


class Columns(NamedTuple):
    """Where rows go. Each slot's rows stand together, from element `bases[slot]` on."""

    id_bytes: Any  # uint8
    id_offsets: Any  # int32 (max_rows + 1,)
    labels: Any  # int32
    label_offsets: Any  # int32 (max_rows + 1,)
    vectors: Any  # uint32: the bits of float32
    frames: Any  # uint8
    frame_offsets: Any  # int64 (max_rows + 1,), in frames
    bases: Any  # int64, a slot each
    max_rows: int
    max_id_bytes: int
    max_labels: int
    max_frames: int  # of all rows together


class Scratch(NamedTuple):
    """Memory of the parser between calls."""

    entries: Any  # int64, two a slot: start and stop of the map entry that counts; both -1: there is none
    label_seen: Any  # int64 (num_classes,): the list that a label was last seen in
    num_lists: Any  # int64 (1,): lists begun so far
    span: Any  # int64 (2,): start and stop of the last bytes value
    detail: Any  # int64 (3,): feature (slot), index, value


@inlined
def note(scratch: Scratch, slot: int, index: int, value: int) -> None:
    """Say what was wrong, and where."""
    scratch.detail[0], scratch.detail[1], scratch.detail[2] = slot, index, value


@inlined
def find_slot(buffer: Any, start: int, stop: int, plan: Plan, field: int) -> int:
    """Which of the slots that stand in `field` (its tag) of a record is named `buffer[start:stop]`; -1 for none."""
    first, last = (0, plan.num_context) if field == BYTES_1 else (plan.num_context, plan.num_slots)
    for slot in range(first, last):
        name = plan.name_ends[slot - 1] if slot > 0 else 0
        if plan.name_ends[slot] - name == stop - start:
            i = start
            while i < stop and buffer[i] == plan.names[name + i - start]:
                i += 1
            if i == stop:
                return slot
    return -1


@inlined
def find_entries(buffer: Any, start: int, stop: int, plan: Plan, field: int, entries: Any) -> int:
    """Note the last entry of each wanted name in the map (Features or FeatureLists) that is `field` of a record."""
    i = start
    while i < stop:
        tag, entry, i = next_field(buffer, i, stop)
        if tag == BAD_TAG:
            return MALFORMED
        if tag != BYTES_1:
            continue
        name_start, name_stop = entry, entry
        is_strange = False
        j = entry
        while j < i:
            tag, part, j = next_field(buffer, j, i)
            if tag == BAD_TAG:
                return MALFORMED
            if tag == BYTES_1:
                name_start, name_stop = part, j
            elif tag != BYTES_2:
                is_strange = True
        slot = find_slot(buffer, name_start, name_stop, plan, field)
        if slot >= 0 and is_strange:
            return MALFORMED
        if slot >= 0:
            entries[2 * slot], entries[2 * slot + 1] = entry, i
    return OK


@inlined
def copy_floats(buffer: Any, start: int, count: int, vectors: Any, at: int) -> np.uint32:
    """Copy float32 values; the largest magnitude as bits, which order as magnitudes do, infinity and NaN last."""
    largest = np.uint32(0)
    for k in range(count):
        bits = load_u32(buffer, start + 4 * k)
        vectors[at + k] = bits
        largest = max(largest, np.uint32(bits & np.uint32(0x7FFFFFFF)))
    return largest


@inlined
def read_floats(
    buffer: Any, start: int, stop: int, count: int, slot: int, row: int, plan: Plan, columns: Columns, scratch: Scratch
) -> tuple[int, int]:
    """Append a part of a FloatList to the `count` values that the slot's row has; those too many are only counted."""
    size = plan.sizes[slot]
    base = columns.bases[slot] + row * size
    i = start
    while i < stop:
        tag, first, i = next_field(buffer, i, stop)
        if tag == BAD_TAG or (tag == BYTES_1 and (i - first) & 3):
            return MALFORMED, count
        if tag != BYTES_1 and tag != FIXED32_1:
            continue
        kept = max(0, min((i - first) // 4, size - count))
        if copy_floats(buffer, first, kept, columns.vectors, base + count) > plan.max_float_bits:
            for k in range(kept):
                bits = np.int64(columns.vectors[base + count + k])
                if bits & 0x7FFFFFFF > plan.max_float_bits:
                    note(scratch, slot, count + k, bits)
                    return BAD_FLOAT, count
        count += (i - first) // 4
    return OK, count


@inlined
def read_labels(
    buffer: Any, start: int, stop: int, count: int, row: int, plan: Plan, columns: Columns, scratch: Scratch
) -> tuple[int, int]:
    """Append a part of an Int64List to the `count` distinct labels that this row has."""
    base = columns.label_offsets[row]
    i = start
    while i < stop:
        tag, j, i = next_field(buffer, i, stop)
        if tag == BAD_TAG:
            return MALFORMED, count
        if tag != BYTES_1 and tag != VARINT_1:
            continue
        while j < i:
            value, j = read_varint(buffer, j, i)
            if j < 0:
                return MALFORMED, count
            label = np.int64(value)
            if label < 0 or label >= plan.num_classes:
                note(scratch, plan.num_id_names, count, label)
                return BAD_LABEL, count
            if scratch.label_seen[label] == scratch.num_lists[0]:
                continue
            scratch.label_seen[label] = scratch.num_lists[0]
            if base + count == columns.max_labels:
                return BATCH_FULL, count
            columns.labels[base + count] = label
            count += 1
    return OK, count


@inlined
def read_bytes(buffer: Any, start: int, stop: int, count: int, scratch: Scratch) -> tuple[int, int]:
    """Add the values in a part of a BytesList to `count`, and note where the last one stands."""
    i = start
    while i < stop:
        tag, first, i = next_field(buffer, i, stop)
        if tag == BAD_TAG:
            return MALFORMED, count
        if tag == BYTES_1:
            scratch.span[0], scratch.span[1] = first, i
            count += 1
    return OK, count


@inlined
def read_feature(
    buffer: Any, start: int, stop: int, kind: int, count: int,
    slot: int, row: int, plan: Plan, columns: Columns, scratch: Scratch,
) -> tuple[int, int, int]:  # fmt: skip
    """Merge a Feature into one that so far is a list of `kind` with `count` values (0, 0: nothing yet).

    Gives the status, the kind and the count. Only a list of the slot's own kind is looked into.
    """
    i = start
    while i < stop:
        tag, part, i = next_field(buffer, i, stop)
        if tag == BAD_TAG:
            return MALFORMED, kind, count
        if tag != BYTES_LIST and tag != FLOAT_LIST and tag != INT64_LIST:
            continue
        if tag != kind:
            kind, count = tag, 0
            scratch.num_lists[0] += 1
        status = OK
        if tag != plan.kinds[slot]:
            continue
        if tag == FLOAT_LIST:
            status, count = read_floats(buffer, part, i, count, slot, row, plan, columns, scratch)
        elif tag == INT64_LIST:
            status, count = read_labels(buffer, part, i, count, row, plan, columns, scratch)
        else:
            status, count = read_bytes(buffer, part, i, count, scratch)
        if status != OK:
            return status, kind, count
    return OK, kind, count


@inlined
def read_entry(buffer: Any, slot: int, row: int, plan: Plan, columns: Columns, scratch: Scratch) -> tuple[int, int]:
    """Read the Feature in the slot's map entry: status, number of values. A Feature that is no list at all has none."""
    kind, count = 0, 0
    i, stop = scratch.entries[2 * slot], scratch.entries[2 * slot + 1]
    while i < stop:
        tag, start, i = next_field(buffer, i, stop)
        if tag == BAD_TAG:
            return MALFORMED, 0
        if tag == BYTES_2:
            status, kind, count = read_feature(buffer, start, i, kind, count, slot, row, plan, columns, scratch)
            if status != OK:
                return status, 0
    if kind != plan.kinds[slot] and kind != 0:
        note(scratch, slot, 0, kind)
        return WRONG_KIND, 0
    return OK, count


@inlined
def read_frames(buffer: Any, slot: int, row: int, plan: Plan, columns: Columns, scratch: Scratch) -> tuple[int, int]:
    """Read the FeatureList in the slot's map entry: status, frames found (those beyond `plan.max_frames` too)."""
    size = plan.sizes[slot]
    first_frame = columns.frame_offsets[row]
    count = 0
    i, stop = scratch.entries[2 * slot], scratch.entries[2 * slot + 1]
    while i < stop:
        tag, j, i = next_field(buffer, i, stop)
        if tag == BAD_TAG:
            return MALFORMED, count
        if tag != BYTES_2:
            continue
        while j < i:
            tag, start, j = next_field(buffer, j, i)
            if tag == BAD_TAG:
                return MALFORMED, count
            if tag != BYTES_1:
                continue
            status, kind, num_values = read_feature(
                buffer, start, j, np.int64(0), np.int64(0), slot, row, plan, columns, scratch
            )
            if status != OK:
                return status, count
            if kind != BYTES_LIST or num_values != 1:
                note(scratch, slot, count, num_values if kind == BYTES_LIST else -kind)
                return WRONG_KIND, count
            frame, num_bytes = scratch.span[0], scratch.span[1] - scratch.span[0]
            if num_bytes != size:
                note(scratch, slot, count, num_bytes)
                return FRAME_BYTES_WRONG, count
            if count < plan.max_frames:
                if first_frame + count == columns.max_frames:
                    return BATCH_FULL, count
                at = columns.bases[slot] + (first_frame + count) * size
                copy_bytes(columns.frames, at, buffer, frame, size)
            count += 1
    return OK, count


@inlined
def store_id(buffer: Any, count: int, slot: int, row: int, columns: Columns, scratch: Scratch) -> int:
    """Take the bytes value just found as the row's id: exactly one, not empty, UTF-8."""
    note(scratch, slot, 0, count)
    start, stop = scratch.span[0], scratch.span[1]
    if count != 1 or start == stop:
        return NUM_VALUES
    if not is_utf8(buffer, start, stop):
        return BAD_UTF8
    at = columns.id_offsets[row]
    if stop - start > columns.max_id_bytes - at:
        return BATCH_FULL
    copy_bytes(columns.id_bytes, at, buffer, start, stop - start)
    columns.id_offsets[row + 1] = at + stop - start
    return OK


@called
def read_record(buffer: Any, start: int, stop: int, row: int, plan: Plan, columns: Columns, scratch: Scratch) -> int:
    """Parse one record into row `row`."""
    entries = scratch.entries
    num_slots = plan.num_slots
    for slot in range(num_slots):
        entries[2 * slot], entries[2 * slot + 1] = -1, -1
    has_lists = False
    i = start
    while i < stop:
        tag, first, i = next_field(buffer, i, stop)
        status = OK
        if tag == BAD_TAG:
            status = MALFORMED
        elif tag == BYTES_2 and plan.num_context == num_slots:
            has_lists = has_lists or first < i
        elif tag in (BYTES_1, BYTES_2):
            status = find_entries(buffer, first, i, plan, tag, entries)
        if status != OK:
            return status
    if has_lists:
        return IS_SEQUENCE_EXAMPLE

    slot, labels = 0, plan.num_id_names
    while slot < labels and entries[2 * slot] < 0:
        slot += 1
    if slot == labels:
        return NO_ID
    columns.label_offsets[row + 1] = columns.label_offsets[row]  # test shards have no labels
    num_frames = -1
    while slot < num_slots:
        if entries[2 * slot] < 0 and slot != labels:
            note(scratch, slot, 0, 0)
            return MISSING
        if slot < plan.num_context:
            status, count = read_entry(buffer, slot, row, plan, columns, scratch)
        else:
            status, count = read_frames(buffer, slot, row, plan, columns, scratch)
        if status != OK:
            return status
        if slot < labels:
            status = store_id(buffer, count, slot, row, columns, scratch)
            if status != OK:
                return status
            slot = labels
            continue
        if slot == labels:
            columns.label_offsets[row + 1] = columns.label_offsets[row] + count
        elif slot < plan.num_context:
            if count != plan.sizes[slot]:
                note(scratch, slot, 0, count)
                return NUM_VALUES
        else:
            if count == 0 or (num_frames >= 0 and count != num_frames):
                note(scratch, slot, num_frames, count)
                return FRAME_COUNT
            num_frames = count
        slot += 1
    columns.frame_offsets[row + 1] = columns.frame_offsets[row] + max(0, min(num_frames, plan.max_frames))
    return OK


@compiled
def read_records(
    buffer: Any, start: int, stop: int, verify_crc: bool, row: int, plan: Any, columns: Any, scratch: Any
) -> tuple[int, int, int]:
    """Parse the frames of `buffer[start:stop]` into the rows from `row` on, until something must be decided.

    Returns the status, the position of the frame that it is about, and the number of rows that now stand:
    `NEED_BYTES`: the frame there is not complete in the buffer; `BATCH_FULL`: no room for it; else what is wrong with
    it.
    """
    data = pointer(buffer)
    p, c, s = plan, columns, scratch
    to_read = Plan(pointer(p[0]), pointer(p[1]), pointer(p[2]), pointer(p[3]), p[4], p[5], p[6], p[7], p[8], p[9])
    to_write = Columns(
        pointer(c[0]), pointer(c[1]), pointer(c[2]), pointer(c[3]), pointer(c[4]), pointer(c[5]), pointer(c[6]),
        pointer(c[7]), c[8], c[9], c[10], c[11],
    )  # fmt: skip
    memory = Scratch(pointer(s[0]), pointer(s[1]), pointer(s[2]), pointer(s[3]), pointer(s[4]))
    i: Any = start
    while row < to_write.max_rows:
        if stop - i < HEADER_BYTES:
            return NEED_BYTES, i, row
        if verify_crc and masked_crc32c(data, i, i + 8) != load_u32(data, i + 8):
            return BAD_LENGTH_CRC, i, row
        length = load_u64(data, i)
        if length > np.uint64(MAX_RECORD_BYTES):
            return ABSURD_LENGTH, i, row
        record = i + HEADER_BYTES
        end = record + np.int64(length)
        if stop - end < 4:
            return NEED_BYTES, i, row
        if verify_crc and masked_crc32c(data, record, end) != load_u32(data, end):
            return BAD_DATA_CRC, i, row
        status = read_record(data, record, end, row, to_read, to_write, memory)
        if status != OK:
            return status, i, row
        i = end + 4
        row += 1
    return BATCH_FULL, i, row


@compiled
def find_header(buffer: Any, start: int, stop: int) -> int:
    """The first position from `start` on with a frame's header: a sane length that has the right checksum.

    Without one, the first position whose header would not be complete.
    """
    for i in range(start, stop - HEADER_BYTES + 1):
        if load_u64(buffer, i) <= np.uint64(MAX_RECORD_BYTES) and masked_crc32c(buffer, i, i + 8) == load_u32(
            buffer, i + 8
        ):
            return i
    return max(start, stop - HEADER_BYTES + 1)
