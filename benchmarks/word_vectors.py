"""Word vectors of the size of GoogleNews: converting, opening, looking up, and memory.

    python benchmarks/word_vectors.py [--words 3000000] [--size 300] [--folder DIR]

Makes a file in word2vec's binary format, converts it (beside it: reading and writing as many bytes), and then opens the
converted table in new processes of which each looks up 100,000 words: seconds to open, words/s, and resident memory,
which is told apart as the process's own (anonymous) and that of mapped files, which all processes of a node share.
With gensim installed (pip install gensim) its loading of the same file is timed as well.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from mmray.features import word_vectors
from mmray.features.word_vectors import WordVectors

_ROWS = 20_000


def make(path: Path, num_words: int, size: int) -> None:
    """Words w0000000, w0000001, ... with random vectors."""
    random = np.random.default_rng(0)
    rows = np.zeros(_ROWS, [("word", "S9"), ("vector", "<f4", size), ("end", "S1")])
    rows["end"] = b"\n"
    with path.open("wb") as file:
        file.write(f"{num_words} {size}\n".encode())
        for start in range(0, num_words, _ROWS):
            count = min(_ROWS, num_words - start)
            rows["word"][:count] = [f"w{n:07d} ".encode() for n in range(start, start + count)]
            rows["vector"][:count] = random.standard_normal((count, size), np.float32)
            rows[:count].tofile(file)


def resident_mb() -> dict[str, float]:
    """Resident memory of this process, by kind."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {kind: int(lines[kind].split()[0]) / 2**10 for kind in ("RssAnon", "RssFile")}


def open_and_look_up(folder: Path, num_words: int, answers: mp.Queue[dict[str, float]]) -> None:
    """In a process of its own."""
    random = np.random.default_rng(1)
    WordVectors.open(folder).numbers_of(["compiled, if it was not"])
    before = resident_mb()
    began = time.perf_counter()
    vectors = WordVectors.open(folder)
    opened = time.perf_counter() - began
    wanted = random.integers(num_words, size=100_000)
    began = time.perf_counter()
    numbers = vectors.numbers_of([f"w{n:07d}" for n in wanted])
    found = time.perf_counter() - began
    assert np.array_equal(numbers, wanted)
    began = time.perf_counter()
    for piece in np.split(numbers, 100):
        vectors.take(piece)
    taken = time.perf_counter() - began
    after = resident_mb()
    answers.put(
        {
            "open_ms": opened * 1e3, "found_per_s": 1e5 / found, "taken_per_s": 1e5 / taken,
            "own_mb": after["RssAnon"] - before["RssAnon"], "mapped_mb": after["RssFile"] - before["RssFile"],
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=3_000_000)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=None, help="where to write: twice the file's size is needed")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        path, folder = Path(name) / "vectors.bin", Path(name) / "converted"
        make(path, arguments.words, arguments.size)
        size_mb = path.stat().st_size / 2**20
        print(f"{arguments.words:,} words x {arguments.size}: {size_mb:,.0f} MB")

        word_vectors.opened(str(tiny(Path(name))), name)  # compiles
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        began = time.perf_counter()
        word_vectors.convert(path, folder)
        seconds = time.perf_counter() - began
        grown_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - peak_mb
        print(f"converted in {seconds:.1f} s: {size_mb / seconds:,.0f} MB/s; peak memory grew by {grown_mb:,.0f} MB")
        began = time.perf_counter()
        shutil.copyfile(path, Path(name) / "copy")
        copied = time.perf_counter() - began
        print(f"copying the file: {copied:.1f} s")
        (Path(name) / "copy").unlink()

        context, found = mp.get_context("spawn"), []
        for _ in range(arguments.rounds):
            answers: mp.Queue[dict[str, float]] = context.Queue()
            process = context.Process(target=open_and_look_up, args=(folder, arguments.words, answers))
            process.start()
            found.append(answers.get())
            process.join()
        middle = {key: statistics.median(answer[key] for answer in found) for key in found[0]}
        print(
            f"opened in {middle['open_ms']:.1f} ms (target 2,000); {middle['found_per_s']:,.0f} words found/s, "
            f"{middle['taken_per_s']:,.0f} vectors taken/s"
        )
        print(
            f"resident after 100,000 lookups: {middle['own_mb']:.0f} MB of its own (target 200), "
            f"{middle['mapped_mb']:.0f} MB of the shared mapping"
        )
        try:
            from gensim.models import KeyedVectors
        except ImportError:
            print("no peer to compare with: gensim is not installed")
            return
        began = time.perf_counter()
        KeyedVectors.load_word2vec_format(str(path), binary=True)
        print(f"gensim loads the file in {time.perf_counter() - began:.1f} s, in every process")


def tiny(folder: Path) -> Path:
    """A file of one word."""
    path = folder / "tiny.bin"
    make(path, 1, 2)
    return path


if __name__ == "__main__":
    main()
