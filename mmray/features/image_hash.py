"""Near copies of images: a hash of 64 bits that survives scaling and compression, and which hashes are near.

The hash: the image in grey at 32 x 32, its discrete cosine transform, and of the 64 lowest frequencies but the mean
whether each is above their median: half of them are, so that two hashes differ in an even number of bits. It is 0 to 6
for another size or compression of most images, and around 32 for two images. Grey, so that a picture in other colours
is a near copy; and an image with almost no structure (all black) has no hash.

Nearness without comparing all pairs: of two words that differ in at most d bits, cut into d + 1 pieces, one piece is
equal in both. So only words that share a piece are compared: the answer is exact.
"""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIDE = 32
FLAT = 2.0  # levels of standard deviation: less is no structure

Words = NDArray[np.uint64]


@lru_cache(maxsize=1)
def _tables() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cosines (frequencies, SIDE), and the places of the 64 lowest frequencies but (0, 0) in the flat transform."""
    frequencies = np.arange(12)
    cosines = np.cos(np.pi / SIDE * np.outer(frequencies, np.arange(SIDE) + 0.5))
    by_frequency = np.argsort((frequencies[:, None] + frequencies).ravel(), kind="stable")
    return cosines, by_frequency[1:65]


def perceptual_hash(data: bytes) -> int | None:
    """The hash of an image file; None where it has no structure, or is no image that can be read."""
    try:
        image = Image.open(io.BytesIO(data))
        image.draft("L", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at an eighth of its size
        small = ImageOps.exif_transpose(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
        pixels = np.asarray(small, np.float64)
    except Exception:  # whoever reads it gives the reason
        return None
    if pixels.std() < FLAT:
        return None
    cosines, lowest = _tables()
    coefficients = (cosines @ pixels @ cosines.T).ravel()[lowest]
    bits = np.packbits(coefficients > np.median(coefficients))
    return int.from_bytes(bits.tobytes(), "big")


def near_pairs(words: Words, max_bits: int) -> NDArray[np.int64]:
    """Pairs of places (n, 2) of words that differ in at most `max_bits` bits, in 0 to 10.

    Of equal words only neighbours are paired: enough to tell what hangs together.
    """
    if not 0 <= max_bits <= 10:
        raise ValueError(f"max_bits={max_bits}; give 0 to 10, beyond which different images meet")
    order = np.argsort(words, kind="stable")
    equal = np.flatnonzero(words[order][1:] == words[order][:-1])
    pairs = [np.stack([order[equal], order[equal + 1]], axis=1)]
    unique, first = np.unique(words, return_index=True)
    edges = np.linspace(0, 64, max_bits + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        pairs.append(first[_near_in_band(unique, int(low), int(high), max_bits)])
    return np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0)


def _near_in_band(words: Words, low: int, high: int, max_bits: int) -> NDArray[np.int64]:
    """Pairs (n, 2) that agree in the bits `low` to before `high` and differ in at most `max_bits` of all."""
    piece = (words >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
    order = np.argsort(piece, kind="stable")
    piece = piece[order]
    found = [np.empty((0, 2), np.int64)]
    places, apart = np.arange(len(words)), 1
    while len(places):  # each word with the one so far behind it, as long as the piece is the same
        places = places[places + apart < len(words)]
        places = places[piece[places] == piece[places + apart]]
        one, other = order[places], order[places + apart]
        near = np.bitwise_count(words[one] ^ words[other]) <= max_bits
        found.append(np.stack([one, other], axis=1)[near])
        apart += 1
    return np.concatenate(found)


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as there are cores: decoders let go of Python's lock. Warnings of odd metadata are kept quiet."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        yield pool


def hashes_of(paths: Sequence[Path]) -> list[int | None]:
    """The hash of each file."""
    with threads() as pool:
        return list(pool.map(_hash_of_file, paths))


def _hash_of_file(path: Path) -> int | None:
    status = path.stat()
    return _hash_of_version(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _hash_of_version(path: Path, num_bytes: int, mtime_ns: int) -> int | None:
    """As long as it is the same file: a corpus is listed several times in a run."""
    return perceptual_hash(path.read_bytes())
