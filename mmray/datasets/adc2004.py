"""ADC2004, the melody corpus of the ISMIR 2004 audio description contest: its 12 vocal clips, a test set.

`<clip>.wav` (any audio format) and `<clip>REF.txt` in one folder. Of the 20 clips, 8 have no voice (jazz1 to jazz4,
midi1 to midi4) and are left out, as in papers on singing; `clips` names others.

E. Gómez et al., "Melody Description and Extraction in the Context of Music Content Processing", Journal of New Music
Research 32(1), 2003; ismir2004.ismir.net/melody_contest/results.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from mmray.datasets import Reject, Source, _melody
from mmray.datasets._melody import GROUP_KEY, LABEL_KEY, Clip, class_names, columns
from mmray.features import pitch_labels
from mmray.storage import at

__all__ = ["GROUP_KEY", "LABEL_KEY", "Config", "class_names", "columns", "read", "sources"]

VOCAL = (
    "daisy1", "daisy2", "daisy3", "daisy4", "opera_fem2", "opera_fem4", "opera_male3", "opera_male5",
    "pop1", "pop2", "pop3", "pop4",
)  # fmt: skip


class Config(_melody.Settings):
    """Which clips."""

    name: Literal["adc2004"] = "adc2004"
    clips: tuple[str, ...] = Field(VOCAL, min_length=1, description="names without extension; default: the vocal ones")


def sources(config: Config) -> list[Source]:
    """One clip each, all of the test split, sorted by path. ValueError where a clip or its label is missing."""
    pairs = _melody.named_pairs(config, config.clips, "REF.txt")
    return _melody.sources(Clip(path, label, path.stem, _group(path), "test") for path, label in pairs)


def _group(path: Path) -> str:
    return path.stem.rstrip("0123456789")  # the clips of one kind are excerpts of few recordings


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The row of one clip."""
    path = at(source.path)
    return _melody.read_clip(config, source, path.stem, _group(path), pitch_labels.read_times_and_hz, reject)
