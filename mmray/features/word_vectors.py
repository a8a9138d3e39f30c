"""Word vectors in word2vec's files, binary and text: converted once, then memory-mapped.

A converted table is a folder: `vectors.npy` (N, V), `words.arrow` (see `id_table`) and `word_vectors.json`. A word's
number is its place in the file, from 0. Opening reads nothing; the pages that lookups touch are shared by all processes
of a node. Conversion holds one block of the file, the words and 24 bytes for each of them.

Formats, as the word2vec tool writes them. Both begin with a line `N V`. Binary: the word, a blank, V little-endian
float32, and in most files a line feed before the next word. Text: a line a word, its parts parted by blanks. Either may
be compressed by gzip. A word that stands twice counts by its first vector, as in gensim.

T. Mikolov et al., "Efficient Estimation of Word Representations in Vector Space" (arXiv:1301.3781);
code.google.com/archive/p/word2vec
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from mmray.features.id_table import IdTable
from mmray.features.native import compiled, copy_bytes
from mmray.files import locked, write_json, written_folder
from mmray.storage import at, on_this_node

Floats = npt.NDArray[np.float32]
DType = Literal["float32", "float16"]

FORMAT = 1  # of the folder; part of its name
MAX_WORD_BYTES = 4096  # a longer word means that the file is not what it says
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, eq=False)
class WordVectors:
    """N words with a vector of V numbers each. Pickles as its folder."""

    folder: Path
    table: IdTable  # word -> number
    matrix: npt.NDArray[np.floating[Any]]  # (N, V), mapped

    @classmethod
    def open(cls, folder: Path) -> WordVectors:
        """Map a folder that `convert` made."""
        here = on_this_node(folder)
        return cls(folder, IdTable.open(here / "words.arrow"), np.load(here / "vectors.npy", mmap_mode="r"))

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return WordVectors.open, (self.folder,)

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def size(self) -> int:
        """V."""
        return int(self.matrix.shape[1])

    @property
    def words(self) -> pa.LargeStringArray:
        """All words, by number."""
        return self.table.ids

    def numbers_of(self, words: pa.Array | Sequence[str]) -> npt.NDArray[np.int64]:
        """The number of each word, exactly as it is written, (n,); -1 for a word without a vector."""
        return self.table.rows_of(words)

    def take(self, numbers: npt.NDArray[np.integer[Any]]) -> Floats:
        """The vectors (n, V), float32, of the words with these numbers (n,)."""
        vectors: Floats = self.matrix[numbers].astype(np.float32, copy=False)
        return vectors


def opened(source: str, cache: str, dtype: DType = "float32") -> WordVectors:
    """The vectors of the file `source`, converted into the folder `cache` unless they are there already.

    The folder's name there is a hash of the file's path, size and time. ValueError where the file can't be read.
    """
    path = at(source)
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"word vectors {source}: can't be read: {error.strerror}") from None
    identity = json.dumps([FORMAT, source, status.st_size, status.st_mtime_ns, dtype])
    folder = at(cache) / f"word-vectors-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if not (folder / "word_vectors.json").exists():
        with locked(folder.with_name(f".{folder.name}.lock"), f"converting {source}", wait=True):
            if not (folder / "word_vectors.json").exists():  # the other process may have made it
                convert(path, folder, dtype)
    return WordVectors.open(folder)


def convert(path: Path, folder: Path, dtype: DType = "float32") -> None:
    """Read a word2vec file and write `folder`, whole. ValueError where the file is damaged or no such file."""
    with written_folder(folder) as aside:
        with _uncompressed(path) as file:
            count, size = _header(path, file)
            words = _write_vectors(aside / "vectors.npy", path, file, count, size, dtype)
        table = IdTable.build(aside / "words.arrow", words, duplicates="first")
        write_json(aside / "word_vectors.json", {"source": str(path), "words": len(table), "size": size})


def _write_vectors(out: Path, path: Path, file: IO[bytes], count: int, size: int, dtype: DType) -> list[pa.Array]:
    """Write the matrix, block by block; return the words."""
    words = []
    with out.open("wb") as matrix:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count, size)}
        np.lib.format.write_array_header_1_0(matrix, header)
        for piece, vectors in _pieces(path, file, count, size):
            _require_finite(path, piece, vectors, dtype)
            matrix.write(vectors.astype(dtype, copy=False).data)
            words.append(piece)
    return words


def _uncompressed(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path.open("rb")) if zipped else path.open("rb", buffering=0)  # type: ignore[return-value]


def _header(path: Path, file: IO[bytes]) -> tuple[int, int]:
    """N and V."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 64:
        byte = file.read(1)
        if not byte:
            break
        line += byte
    parts = line.split()
    if not line.endswith(b"\n") or len(parts) != 2 or not all(part.isdigit() for part in parts) or b"0" in parts:
        raise ValueError(
            f"{path} is no word2vec file: it must begin with a line of two numbers, those of words and of numbers in a "
            f"vector; it begins with {line[:40]!r}"
        )
    return int(parts[0]), int(parts[1])


def _pieces(path: Path, file: IO[bytes], count: int, size: int) -> Iterator[tuple[pa.Array, Floats]]:
    """Words and their vectors (n, V), a block of the file at a time."""
    first = _read(file, _BLOCK_BYTES)
    parse = _text_pieces if _is_text(first, size) else _binary_pieces
    done = 0
    for words, vectors in parse(path, first, file, count, size):
        done += len(words)
        yield words, vectors
    if done != count:
        raise ValueError(f"{path}: its first line announces {count:,} words, it holds {done:,}; bring the whole file")


def _is_text(block: bytes, size: int) -> bool:
    """Whether the first word is followed by a line of V numbers in words."""
    parts = block.partition(b"\n")[0].split()
    if len(parts) != size + 1:
        return False
    try:
        return bool([float(part) for part in parts[1:]])
    except ValueError:
        return False


def _read(file: IO[bytes], num_bytes: int) -> bytes:
    """Up to `num_bytes`, less only at the end: an unbuffered file may give less at once."""
    pieces, missing = [], num_bytes
    while missing:
        piece = file.read(missing)
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _binary_pieces(
    path: Path, block: bytes, file: IO[bytes], count: int, size: int
) -> Iterator[tuple[pa.Array, Floats]]:
    done = 0
    longest = MAX_WORD_BYTES + 2 + 4 * size
    while done < count:
        if len(block) < longest:
            block += _read(file, max(_BLOCK_BYTES, longest))
        data = np.frombuffer(block, np.uint8)
        room = min(count - done, len(block) // (4 * size + 1) + 1)
        vectors = np.empty((room, size), np.float32)
        text, offsets = np.empty(len(block), np.uint8), np.zeros(room + 1, np.int64)
        num_words, used = _parse_binary(data, size, vectors.view(np.uint8), text, offsets)
        if not num_words:
            return  # the file ends within a word, or a word does not end
        yield _strings(path, done, offsets[: num_words + 1], text), vectors[:num_words]
        done += num_words
        block = block[used:]
    if (block + _read(file, 1)).strip(b"\n"):
        raise ValueError(f"{path}: it goes on after the {count:,} words that its first line announces")


@compiled
def _parse_binary(
    data: npt.NDArray[np.uint8],
    size: int,
    vectors: npt.NDArray[np.uint8],
    text: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> tuple[int, int]:
    """Write words and vectors of a block, as many as are whole and have room; return their number and bytes read."""
    at, n = 0, 0
    while n < len(vectors):
        start = at
        while start < len(data) and data[start] == 10:  # the line feed behind the vector before
            start += 1
        stop = start
        while stop < len(data) and data[stop] != 32 and stop - start <= MAX_WORD_BYTES:
            stop += 1
        if stop - start > MAX_WORD_BYTES or stop + 1 + 4 * size > len(data):
            break
        copy_bytes(text, offsets[n], data, start, stop - start)
        offsets[n + 1] = offsets[n] + stop - start
        copy_bytes(vectors[n], 0, data, stop + 1, 4 * size)
        at = stop + 1 + 4 * size
        n += 1
    return n, at


def _strings(path: Path, first: int, offsets: npt.NDArray[np.int64], text: npt.NDArray[np.uint8]) -> pa.Array:
    """Bytes of words as strings; ValueError for those that are not UTF-8."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(text[: offsets[-1]].copy())]
    words = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    try:
        return words.cast(pa.large_string())
    except pa.ArrowInvalid:
        for n, word in enumerate(words.to_pylist(), first):
            try:
                word.decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: word {n:,}, {word[:40]!r}, is not UTF-8: {error}") from None
        raise


def _text_pieces(path: Path, block: bytes, file: IO[bytes], count: int, size: int) -> Iterator[tuple[pa.Array, Floats]]:
    line = block.partition(b"\n")[0]
    separator = b"\t" if b"\t" in line else b" "
    empty = [f"empty {i}" for i in range(len(line.rstrip(b"\r")) - len(line.rstrip()))]  # blanks that end a line
    names = ["word", *(f"x{i}" for i in range(size))]
    types = {"word": pa.large_binary()} | dict.fromkeys(names[1:], pa.float32()) | dict.fromkeys(empty, pa.string())
    try:
        reader = pa.csv.open_csv(
            pa.PythonFile(_Behind(block, file.read), "r"),
            pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES, column_names=[*names, *empty]),
            pa.csv.ParseOptions(delimiter=separator.decode(), quote_char=False, double_quote=False),
            pa.csv.ConvertOptions(column_types=types, include_columns=names, null_values=[]),
        )
        done = 0
        for batch in reader:
            words = batch.column(0)
            offsets = np.frombuffer(words.buffers()[1], np.int64)[words.offset :][: len(words) + 1]
            text = np.frombuffer(words.buffers()[2] or b"", np.uint8)[offsets[0] :]
            vectors = np.stack([batch.column(i).to_numpy() for i in range(1, size + 1)], axis=1)
            yield _strings(path, done, offsets - offsets[0], text), np.ascontiguousarray(vectors)
            done += len(words)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a word and {size} numbers a line: {error}") from None


class _Behind(io.RawIOBase):
    """A file of which the first block was read already."""

    def __init__(self, block: bytes, read: Callable[[int], bytes]) -> None:
        self._block, self._read = block, read

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._block:
            piece, self._block = self._block[:size], self._block[size:]
            return piece
        return self._read(size)


def _require_finite(path: Path, words: pa.Array, vectors: Floats, dtype: DType) -> None:
    largest = np.abs(vectors).max(axis=1)
    bad = np.flatnonzero(~(largest <= np.finfo(dtype).max))
    if len(bad):
        n = int(bad[0])
        raise ValueError(f"{path}: the vector of {words[n].as_py()!r} has the value {largest[n]}, no {dtype} number")
