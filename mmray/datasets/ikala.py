"""iKala: 252 excerpts of 30 s of 177 Chinese pop songs, the music left and the voice right.

`Wavfile/<song>_<chorus or verse>.wav` (any audio format) and `PitchLabel/<the same>.pv`. The clips of 38 songs,
52 in all, are the test split: those that the authors of the dense dilated network publish scores for. All clips of
these songs are among them, so that no song stands in two splits. The files do not tell which of the six singers sings:
unlike MIR-1K's, this split can't be checked to keep the singers apart.

T.-S. Chan et al., "Vocal Activity Informed Singing Voice Separation with the iKala Dataset", ICASSP 2015
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from mmray.config import Fraction
from mmray.datasets import Reject, Source, _melody
from mmray.datasets._melody import GROUP_KEY, LABEL_KEY, Clip, class_names, columns
from mmray.features import pitch_labels
from mmray.storage import at

__all__ = ["GROUP_KEY", "LABEL_KEY", "Config", "class_names", "columns", "read", "sources"]

TEST_SONGS = {
    "54242", "54243", "54245", "54246", "54247", "54249", "54251", "61647", "61670", "61671", "61673", "61674", "61676",
    "61677", "66556", "66557", "66558", "66559", "66560", "66561", "66563", "66564", "66565", "66566", "71706", "71710",
    "71711", "71712", "71716", "71719", "71720", "71723", "71726", "80612", "80614", "80616", "90586", "90587",
}  # fmt: skip


class Config(_melody.Settings):
    """Which clips, and how they are mixed. `mix: right` gives the voice alone."""

    name: Literal["ikala"] = "ikala"
    val_fraction: Fraction = Field(0.1, description="share of the training songs kept for validation, by their hash")


def sources(config: Config) -> list[Source]:
    """One clip each, sorted by path. ValueError where a partner is missing."""
    return _melody.sources(
        Clip(path, label, path.stem, _song(path), _split(config, path)) for path, label in _melody.karaoke_pairs(config)
    )


def _song(path: Path) -> str:
    matched = re.fullmatch(r"(\d+)_(chorus|verse)", path.stem)
    if not matched:
        raise ValueError(f"{path}: not a name of iKala's, which are like 10161_chorus: <song>_<chorus or verse>")
    return matched[1]


def _split(config: Config, path: Path) -> str:
    if _song(path) in TEST_SONGS:
        return "test"
    return "val" if _melody.fraction(_song(path)) < config.val_fraction else "train"


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The row of one clip."""
    path = at(source.path)
    return _melody.read_clip(config, source, path.stem, _song(path), pitch_labels.read_ikala, reject)
