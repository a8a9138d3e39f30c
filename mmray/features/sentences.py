"""Texts as vectors of one size, by a model of sentence-transformers: whole sentences, in any language that it knows.

N. Reimers and I. Gurevych, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation" (EMNLP
2020). What stands behind the last layer (pooling, a dense layer, a length of 1) differs from model to model and is part
of what the package reads from a model's folder; so it is used instead of bare transformers.

The package is an optional extra and imported where it is first needed. No code that comes with a model is run, and
weights are safetensors, or read without pickle's objects.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class SentenceEncoder:
    """A model and the number of texts that it looks at together."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self.size = len(self._encoded(["size"])[0])
        """Numbers in a vector."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """Vectors (n, size) of n texts, equal ones looked at once. What is longer than the model reads is cut there."""
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        if not places:
            return np.empty((0, self.size), np.float32)
        return self._encoded(list(places))[[places[text] for text in texts]]

    def _encoded(self, texts: list[str]) -> Floats:
        vectors = self._model.encode(texts, batch_size=self._batch_size, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


@functools.lru_cache(maxsize=1)
def opened(model: str, revision: str | None, batch_size: int) -> SentenceEncoder:
    """The model in the folder `model`, or that of the hub of this name at the commit `revision`: one a process.

    On a GPU where the process has one. ValueError where the package is not installed or the model can't be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ValueError(
            "dataset.text.sentence needs the package sentence-transformers: pip install 'mmray[sentence]'"
        ) from None
    is_folder = Path(model).is_dir()
    try:
        loaded = SentenceTransformer(model, revision=revision, trust_remote_code=False, local_files_only=is_folder)
    except Exception as error:  # of the network, the cache, a file or the library, each with kinds of its own
        remedy = "" if is_folder else "; fetch it where there is a network and give its folder, or correct the name"
        raise ValueError(f"dataset.text.sentence.model={model!r} can't be loaded: {error}{remedy}") from error
    return SentenceEncoder(loaded, batch_size)
