"""The most frequent words of what people wrote about training videos, for a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mmray.features.word_vectors import WordVectors
from mmray.prepared import SplitReader, ragged_column
from mmray.schema import DatasetInfo

NUM_WORDS = 20
_BATCH_ROWS = 1 << 16


def common_words(folder: Path, info: DatasetInfo, vectors: WordVectors) -> dict[str, list[dict[str, Any]]]:
    """By column of word numbers its most frequent words, `word` and `count`, in the training split.

    A word that a video has twice counts twice. Empty where the prepared dataset in `folder` is gone.
    """
    columns = tuple(column.name for column in info.columns if column.unit == "word")
    if not columns or "train" not in info.splits or not (folder / "dataset.json").exists():
        return {}
    counts = {name: np.zeros(len(vectors), np.int64) for name in columns}
    split = info.split("train")
    for table in SplitReader(folder, split, columns).batches(0, split.rows, _BATCH_ROWS):
        for name in columns:
            counts[name] += np.bincount(ragged_column(table, name)[0], minlength=len(vectors))
    found = {}
    for name, of_words in counts.items():
        best = np.argsort(-of_words, kind="stable")[:NUM_WORDS]
        best = best[of_words[best] > 0]
        words = vectors.words.take(best).to_pylist()
        found[name] = [
            {"word": word, "count": count} for word, count in zip(words, of_words[best].tolist(), strict=True)
        ]
    return found
