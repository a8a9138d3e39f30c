"""What was found of the text of videos, counted a source at a time and reported of all.

The counts of a source are kept in a folder as `<digest>.json` and the rows of the text table that it met as
`<digest>.npy`: a source that is read again writes the same files again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmray.datasets._text_table import digest
from mmray.files import write_json, written_whole

Int64s = npt.NDArray[np.int64]
Labels = Sequence[frozenset[str]]  # the words of each label's name


@dataclass
class TextCounts:
    """Of one kind of text: videos that have it, that have it in English, and with a word that has a vector.

    Over those in English whose video has a label (`labelled`), `in_labels` sums the share of their words that are of a
    label all of whose words stand in the text, and `label_words` the share of all words of the labels that do.
    """

    videos: int = 0
    english: int = 0
    known: int = 0
    labelled: int = 0
    in_labels: float = 0.0
    label_words: float = 0.0

    def add_overlap(self, words: Sequence[str], labels: Labels) -> None:
        """Take in one text and the labels of its video."""
        lower = [word.lower() for word in words]
        there, every = frozenset(lower), frozenset[str]().union(*labels)
        whole = frozenset[str]().union(*(label for label in labels if label <= there))
        self.labelled += 1
        self.in_labels += sum(word in whole for word in lower) / len(lower)
        self.label_words += len(every & there) / max(1, len(every))

    def add(self, other: TextCounts) -> None:
        """Take in the counts of other videos."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        line = f"{self.videos:,} videos, {self.english:,} in English, {self.known:,} with a word that has a vector"
        if self.labelled:
            share, words = self.in_labels / self.labelled, self.label_words / self.labelled
            line += f"; overlap with labels: {share:.1%} of their words, {words:.1%} of the labels' words"
        return line


@dataclass
class Counts:
    """Of the videos of a source, or of several. `kept`: prepared; `rows`: what was met of the text table."""

    videos: int = 0
    kept: int = 0
    titles: TextCounts = field(default_factory=TextCounts)
    keywords: TextCounts = field(default_factory=TextCounts)
    rows: list[Int64s] = field(default_factory=list)

    def write(self, folder: Path, source: str) -> None:
        """Keep the counts of a source."""
        stem = _stem(folder, source)
        with written_whole(stem.with_suffix(".npy")) as aside, aside.open("wb") as file:
            np.save(file, np.concatenate([*self.rows, np.empty(0, np.int64)]))
        texts = {"titles": asdict(self.titles), "keywords": asdict(self.keywords)}
        write_json(stem.with_suffix(".json"), {"videos": self.videos, "kept": self.kept, **texts})


def _stem(folder: Path, source: str) -> Path:
    return folder / digest([source])


def report(folder: Path, sources: Sequence[str], table_rows: int) -> str:
    """Rows of the text that were matched or not, what was left of them, and how labels and text overlap."""
    total = Counts()
    for note in (_stem(folder, source).with_suffix(".json") for source in sources):
        if not note.exists():
            return f"text: some of its counts are gone from {folder}; prepare anew to have them"
        values = json.loads(note.read_text())
        total.videos += values["videos"]
        total.kept += values["kept"]
        total.titles.add(TextCounts(**values["titles"]))
        total.keywords.add(TextCounts(**values["keywords"]))
        with note.with_suffix(".npy").open("rb") as file:
            total.rows.append(np.load(file))
    rows = np.concatenate(total.rows)
    matched = len(np.unique(rows))
    left_out = f", and {total.kept:,} are prepared (text.videos)" if total.kept < total.videos else ""
    return "\n".join(
        [
            f"text: {table_rows:,} rows, {matched:,} of them matched, {table_rows - matched:,} of no video here; "
            f"{len(rows):,} of {total.videos:,} videos have text{left_out}",
            f"  titles: {total.titles}",
            f"  keywords: {total.keywords}",
        ]
    )
