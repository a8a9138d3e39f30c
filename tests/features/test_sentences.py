"""Vectors of sentences: a tiny model of sentence-transformers, made here, against its parts run by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.features import sentences

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "guitar", "solo", "live", "gitarre", "##n", "in", "paris"]
TEXTS = ["guitar solo", "gitarren live in paris", "guitar solo", "paris", "guitar solo in guitar solo in paris live"]
SIZE = 12


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    sentences.opened.cache_clear()
    yield
    sentences.opened.cache_clear()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer with random weights, mean pooling, vectors of length 1; it reads eight tokens of a text."""
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("sentence_transformers")
    root = tmp_path_factory.mktemp("model")
    (root / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    torch.manual_seed(0)
    settings = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=SIZE, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, initializer_range=1.0,
    )  # fmt: skip
    transformers.BertModel(settings).save_pretrained(root / "bert")
    transformers.BertTokenizer(str(root / "vocab.txt")).save_pretrained(root / "bert")
    modules = package.sentence_transformer.modules
    reader = modules.Transformer(str(root / "bert"))
    reader.max_seq_length = 8
    parts = [reader, modules.Pooling(SIZE, pooling_mode="mean"), modules.Normalize()]
    package.SentenceTransformer(modules=parts, device="cpu").save(str(root / "whole"))
    return root


def by_hand(tiny: Path, text: str) -> np.ndarray:
    """One text by itself: tokens by the vocabulary, cut at eight; the mean of the last layer; length 1."""
    import transformers

    words = text.replace("gitarren", "gitarre ##n").split()
    tokens = [2, *(VOCABULARY.index(word) for word in words[:6]), 3]
    model = transformers.BertModel.from_pretrained(tiny / "bert").eval()
    with torch.no_grad():
        mean = model(torch.tensor([tokens])).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_vectors_are_those_of_each_text_by_itself(tiny: Path, batch_size: int) -> None:
    encoder = sentences.opened(str(tiny / "whole"), None, batch_size)
    found = encoder.encode(TEXTS)
    assert (encoder.size, found.dtype, found.shape) == (SIZE, np.float32, (len(TEXTS), SIZE))
    np.testing.assert_allclose(found, [by_hand(tiny, text) for text in TEXTS], atol=2e-6)
    assert encoder.encode([]).shape == (0, SIZE)


def test_a_process_has_one_model(tiny: Path) -> None:
    first = sentences.opened(str(tiny / "whole"), None, 2)
    assert sentences.opened(str(tiny / "whole"), None, 2) is first


def test_a_folder_without_a_model_is_named(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sentence\.model='.*' can't be loaded"):
        sentences.opened(str(tmp_path), None, 2)


class Counting:
    """A model that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode(self, texts: list[str], **options: Any) -> np.ndarray:
        self.asked.append(texts)
        return np.array([[len(text), text.count("a")] for text in texts], np.float64)


def test_equal_texts_are_looked_at_once_and_come_back_in_order() -> None:
    model = Counting()
    encoder = sentences.SentenceEncoder(model, 3)
    found = encoder.encode(["aa", "b", "aa", "cca", "b"])
    assert found.tolist() == [[2, 2], [1, 0], [2, 2], [3, 1], [1, 0]]
    assert found.dtype == np.float32
    assert model.asked[1:] == [["aa", "b", "cca"]]


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"needs the package sentence-transformers: pip install 'mmray\[sentence\]'"):
        sentences.opened("anything", None, 2)
