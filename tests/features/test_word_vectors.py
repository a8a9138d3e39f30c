"""word2vec's files: against values worked out by hand, and gensim where it is installed."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mmray.features import word_vectors
from mmray.features.word_vectors import WordVectors, opened

WORDS = ["the", "</s>", "naïve", '"quoted', "New_York", "null", "日本"]
VECTORS = np.array([[k + 0.5, -k / 3, 10.0**-k] for k in range(len(WORDS))], np.float32)


def binary(line_feeds: bool, words: list[str] = WORDS) -> bytes:
    end = b"\n" if line_feeds else b""
    rows = [f"{word} ".encode() + struct.pack("<3f", *row) + end for word, row in zip(words, VECTORS, strict=True)]
    return f"{len(words)} 3\n".encode() + b"".join(rows)


def text(separator: str = " ", end: str = "\n") -> bytes:
    rows = [separator.join([word, *(f"{x:.9g}" for x in row)]) + end for word, row in zip(WORDS, VECTORS, strict=True)]
    return (f"{len(WORDS)} 3\n" + "".join(rows)).encode()


FILES = {
    "binary": binary(line_feeds=False),
    "binary with line feeds": binary(line_feeds=True),
    "binary, compressed": gzip.compress(binary(line_feeds=False)),
    "text": text(),
    "text, blanks at the end": text(end=" \n"),
    "text of Windows": text(end="\r\n"),
    "text with tabs": text(separator="\t"),
    "text, no line feed at the end": text().rstrip(b"\n"),
    "text, compressed": gzip.compress(text()),
}


@pytest.mark.parametrize("block", [1, 40, 1 << 20], ids="blocks of {}".format)
@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_every_format_gives_the_same(
    content: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"the 0.5" in content or b"the\t" in content or content[:2] == b"\x1f\x8b":
        block = max(block, 64)  # Arrow wants a whole line in a block of text
    monkeypatch.setattr(word_vectors, "_BLOCK_BYTES", block)
    path = tmp_path / "vectors"
    path.write_bytes(content)
    vectors = opened(str(path), str(tmp_path / "cache"))
    assert (len(vectors), vectors.size) == (len(WORDS), 3)
    assert vectors.words.to_pylist() == WORDS
    np.testing.assert_array_equal(vectors.matrix, VECTORS)
    assert vectors.numbers_of(["null", "The", "the", "naïve", ""]).tolist() == [5, -1, 0, 2, -1]
    np.testing.assert_array_equal(vectors.take(np.array([6, 0, 6])), VECTORS[[6, 0, 6]])


def test_a_value_by_hand(tmp_path: Path) -> None:
    """0.15625 is 1.25 / 8: sign 0, exponent 124, fraction 0.25: 0x3E200000, stored from its low end."""
    (tmp_path / "one.bin").write_bytes(b"1 2\nhalf " + bytes.fromhex("0000203e") + bytes.fromhex("000000c0"))
    assert opened(str(tmp_path / "one.bin"), str(tmp_path)).matrix.tolist() == [[0.15625, -2.0]]


def test_half_precision(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(text())
    vectors = opened(str(tmp_path / "vectors"), str(tmp_path / "cache"), "float16")
    assert vectors.matrix.dtype == np.float16
    taken = vectors.take(np.arange(len(WORDS)))
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, VECTORS.astype(np.float16).astype(np.float32))


def test_a_word_that_stands_twice_counts_by_its_first_vector(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(b"3 1\na 1\nb 2\na 3\n")
    vectors = opened(str(tmp_path / "vectors"), str(tmp_path / "cache"))
    assert vectors.take(vectors.numbers_of(["a", "b"])).tolist() == [[1.0], [2.0]]


BAD = {
    "empty": (b"", "no word2vec file: it must begin with"),
    "no header": (b"the 0.1 0.2\n", "it begins with b'the 0.1 0.2"),
    "a header without end": (b"1" * 100, "no word2vec file"),
    "no words": (b"0 3\n", "no word2vec file"),
    "cut short, binary": (binary(line_feeds=True)[:-4], "announces 7 words, it holds 6"),
    "cut short, text": (text()[: text().rindex("日".encode())], "announces 7 words, it holds 6"),
    "too long, binary": (binary(line_feeds=True) + b"more", "goes on after the 7 words"),
    "too long, text": (text() + b"more 1 2 3\n", "announces 7 words, it holds 8"),
    "a line cut short": (text()[:-3].rsplit(b" ", 1)[0], "not a word and 3 numbers a line"),
    "no number": (text().replace(b"0.333333343", b"a_third"), "not a word and 3 numbers a line"),
    "not UTF-8": (b"2 1\nok 1\n\xff\xfe 2\n", r"word 1, b'\\xff\\xfe', is not UTF-8"),
    "not a number": (b"2 1\nok 1\nodd nan\n", "vector of 'odd' has the value nan"),
    "infinite": (b"1 2\nbig " + struct.pack("<2f", 1, np.inf), "vector of 'big' has the value inf"),
    "a word without end": (b"9 3\n" + b"x" * 9000, "announces 9 words, it holds 0"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD.keys())
def test_damage_is_named_and_leaves_nothing_behind(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        opened(str(path), str(tmp_path / "cache"))
    assert str(path) in str(caught.value)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_too_large_for_half_precision(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_bytes(b"1 1\nbig 70000\n")
    with pytest.raises(ValueError, match=r"vector of 'big' has the value 70000\.0, no float16 number"):
        opened(str(tmp_path / "vectors"), str(tmp_path), "float16")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"word vectors .*missing.bin: can't be read"):
        opened(str(tmp_path / "missing.bin"), str(tmp_path))


def test_one_process_converts_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vectors").write_bytes(text())
    converted, convert = [], word_vectors.convert
    monkeypatch.setattr(word_vectors, "convert", lambda *given: (converted.append(given), convert(*given)))
    with ThreadPoolExecutor(8) as threads:
        tables = list(threads.map(lambda _: opened(str(tmp_path / "vectors"), str(tmp_path / "cache")), range(8)))
    assert len(converted) == 1
    assert all(table.words.to_pylist() == WORDS for table in tables)
    assert json.loads((tables[0].folder / "word_vectors.json").read_text())["words"] == len(WORDS)
    assert pickle.loads(pickle.dumps(tables[0])).numbers_of(["the"]).tolist() == [0]


def test_another_version_of_the_file_is_converted_anew(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    path.write_bytes(b"1 1\nold 1\n")
    assert opened(str(path), str(tmp_path / "cache")).words.to_pylist() == ["old"]
    path.write_bytes(b"1 1\nnewer 1\n")
    assert opened(str(path), str(tmp_path / "cache")).words.to_pylist() == ["newer"]


def test_gensim_reads_the_same(real_data: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("gensim.models")
    path = real_data / "word2vec" / "euclidean_vectors.bin"
    theirs = models.KeyedVectors.load_word2vec_format(str(path), binary=True)
    theirs.save_word2vec_format(str(tmp_path / "vectors.txt"), binary=False)
    for file in (path, tmp_path / "vectors.txt"):
        ours = opened(str(file), str(tmp_path / "cache"))
        assert ours.words.to_pylist() == theirs.index_to_key
        np.testing.assert_array_equal(ours.matrix, theirs.vectors)


def test_real_vectors(real_data: Path, tmp_path: Path) -> None:
    """Read independently, word by word."""
    data = (real_data / "word2vec" / "euclidean_vectors.bin").read_bytes()
    ours: WordVectors = opened(str(real_data / "word2vec" / "euclidean_vectors.bin"), str(tmp_path))
    assert (len(ours), ours.size) == (2747, 10)
    at = data.index(b"\n") + 1
    for number, word in enumerate(ours.words.to_pylist()):
        stop = data.index(b" ", at)
        assert data[at:stop].lstrip(b"\n").decode() == word
        assert ours.matrix[number].tobytes() == data[stop + 1 : stop + 41]
        at = stop + 41
    assert ours.numbers_of(ours.words).tolist() == list(range(2747))
