"""The bytes of a TFRecord shard: read, decompressed, cut into frames, and told in words.

A frame is: uint64 length, uint32 masked CRC-32C of those 8 bytes, the record, uint32 masked CRC-32C of the record.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mmray.features import tfrecord_columns as kernel
from mmray.features.crc32c import masked_crc32c
from mmray.features.protobuf_wire import BAD_TAG, BYTES_1, BYTES_2, field_at
from mmray.storage import at

CHUNK_BYTES = 512 * 1024  # read at once: with the rows being written it stays in a level-2 cache
GZIP_MAGIC = b"\x1f\x8b\x08"
KINDS = {0: "nothing", kernel.BYTES_LIST: "bytes", kernel.FLOAT_LIST: "float", kernel.INT64_LIST: "int64"}


class Shard:
    """The bytes of a file, decompressed: `buffer[start:stop]` are read and still to parse."""

    def __init__(self, path: str):
        self.path = path
        self.buffer = np.empty(CHUNK_BYTES, np.uint8)
        self.start = self.stop = 0
        self.before = 0  # bytes of the file that precede the buffer
        self.damage = ""  # why decompression had to end early
        self.file: Any = at(path).open("rb", buffering=0)
        self.is_gzip = False
        self.fill(kernel.HEADER_BYTES)
        # A record of 559,903 bytes begins like gzip, but its header has the right checksum.
        if bytes(self.buffer[:3]) == GZIP_MAGIC and self.stop >= 3 and not self.at_header():
            self.is_gzip = True
            self.file.seek(0)
            self.file = gzip.GzipFile(fileobj=self.file, mode="rb")
            self.start = self.stop = 0

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    @property
    def offset(self) -> int:
        """Where in the file `start` is."""
        return self.before + self.start

    def fill(self, num_bytes: int) -> bool:
        """Read until `num_bytes` stand in the buffer; False when the file ends before.

        The buffer grows with what really arrives, never to a length that only a header claims.
        """
        while self.stop - self.start < num_bytes:
            if self.start > 0:
                kept = self.stop - self.start
                memory = self.buffer.data  # moves bytes in place, where numpy would make a copy first
                memory[:kept] = memory[self.start : self.stop]
                self.before += self.start
                self.start, self.stop = 0, kept
            if self.stop == len(self.buffer):
                self.buffer = np.concatenate([self.buffer, np.empty_like(self.buffer)])
            target = self.buffer.data[self.stop :]
            try:
                # readinto1: gzip's readinto would lose what it had decompressed before it met the damage.
                num_read = self.file.readinto1(target) if self.is_gzip else self.file.readinto(target)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self.damage = str(error)
                return False
            if not num_read:
                return False
            self.stop += num_read
        return True

    def frame_bytes(self) -> int:
        """Bytes of the frame at `start`, from its header; of a header where that is not in the buffer or absurd."""
        if self.stop - self.start < kernel.HEADER_BYTES:
            return kernel.HEADER_BYTES
        length = int(self.buffer[self.start : self.start + 8].view("<u8")[0])
        return kernel.FRAME_BYTES + length if length <= kernel.MAX_RECORD_BYTES else kernel.HEADER_BYTES

    def at_header(self) -> bool:
        """Whether the header of a frame stands at `start`: a sane length with the right checksum."""
        return self.fill(kernel.HEADER_BYTES) and (
            kernel.find_header(self.buffer, self.start, self.start + kernel.HEADER_BYTES) == self.start
        )

    def at_frame(self) -> bool:
        """Whether a whole frame stands at `start`, both checksums right."""
        if not self.at_header() or not self.fill(self.frame_bytes()):
            return False
        record, end = self.record()
        stored = int(self.buffer[end : end + 4].view("<u4")[0])
        return bool(masked_crc32c(self.buffer, record, end) == stored)

    def record(self) -> tuple[int, int]:
        """Where in the buffer the record of the whole frame at `start` starts and stops."""
        return self.start + kernel.HEADER_BYTES, self.start + self.frame_bytes() - 4

    def seek_frame(self) -> bool:
        """Leave `start` for the next whole frame; False, and everything read, when there is none."""
        self.start = min(self.start + 1, self.stop)
        while self.fill(kernel.HEADER_BYTES):
            self.start = kernel.find_header(self.buffer, self.start, self.stop)
            if self.stop - self.start >= kernel.HEADER_BYTES:
                if self.at_frame():
                    return True
                self.start += 1
        self.start = self.stop
        return False

    def tail(self) -> str:
        """What is wrong with the end of the file, once no more can be read; empty when it ended after a frame."""
        left = self.stop - self.start
        if self.damage:
            return f"damaged gzip ({self.damage}): the {left} bytes before the damage are no whole record"
        if self.offset + left == 0:
            return "the file is empty"
        if left == 0:
            return ""
        if left < kernel.HEADER_BYTES:
            return f"truncated: {left} bytes are left, a frame's header has {kernel.HEADER_BYTES}"
        return f"truncated: the frame has {self.frame_bytes()} bytes, {left} are left"


@dataclass(frozen=True)
class Contents:
    """What stands in a record: features (kind, number of values), feature lists (frames, kind, size of the first)."""

    features: dict[str, tuple[str, int]]
    feature_lists: dict[str, tuple[int, str, int]]

    def __str__(self) -> str:
        parts = [f"{name} ({count} {kind})" for name, (kind, count) in self.features.items()]
        parts += [f"{name} ({n} frames of {size} {kind})" for name, (n, kind, size) in self.feature_lists.items()]
        return ", ".join(parts) if parts else "no feature"


def read_contents(path: str, num_records: int) -> list[Contents]:
    """What the first whole records of a shard hold, whatever it is; ValueError when it has none."""
    found: list[Contents] = []
    with Shard(path) as shard:
        whole = shard.at_frame() or shard.seek_frame()
        while whole and len(found) < num_records:
            found.append(contents_of(shard.buffer, *shard.record()))
            shard.start += shard.frame_bytes()
            whole = shard.at_frame() or shard.seek_frame()
        if not found:
            raise ValueError(f"{path}: {shard.tail() or 'no TFRecord frame whose checksums hold stands in it'}")
    return found


def _fields(buffer: npt.NDArray[np.uint8], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Tag, start and stop of each field of a message, up to its end or the first malformed one."""
    while start < stop:
        tag, first, start = field_at(buffer, start, stop)
        if tag == BAD_TAG:
            return
        yield tag, first, start


def _feature(buffer: npt.NDArray[np.uint8], start: int, stop: int) -> tuple[str, int, int]:
    """Kind, number of values and bytes of the last value of a Feature."""
    kind = count = size = 0
    for tag, first, last in _fields(buffer, start, stop):
        if tag in KINDS:
            kind, count = tag, count if tag == kind else 0
            for value_tag, i, j in _fields(buffer, first, last):
                size = j - i
                if kind == kernel.FLOAT_LIST:
                    count += size // 4
                elif kind == kernel.INT64_LIST:
                    count += int(np.count_nonzero(buffer[i:j] < 0x80))
                else:
                    count += value_tag == BYTES_1
    return KINDS[kind], count, size


def contents_of(buffer: npt.NDArray[np.uint8], start: int, stop: int) -> Contents:
    """What stands in the record, for people to read: of a malformed one, what precedes the damage."""
    features: dict[str, tuple[str, int]] = {}
    feature_lists: dict[str, tuple[int, str, int]] = {}
    for tag, first, last in _fields(buffer, start, stop):
        for _, entry, entry_end in _fields(buffer, first, last) if tag in (BYTES_1, BYTES_2) else ():
            name, value = "", (entry, entry)
            for part, i, j in _fields(buffer, entry, entry_end):
                if part == BYTES_1:
                    name = bytes(buffer[i:j]).decode(errors="backslashreplace")
                elif part == BYTES_2:
                    value = (i, j)
            if tag == BYTES_1:
                kind, count, _ = _feature(buffer, *value)
                features[name] = (kind, count)
            else:
                frames = [_feature(buffer, i, j) for part, i, j in _fields(buffer, *value) if part == BYTES_1]
                kind, count, size = frames[0] if frames else ("nothing", 0, 0)
                feature_lists[name] = (len(frames), kind, size if kind == "bytes" else count)
    return Contents(features, feature_lists)
