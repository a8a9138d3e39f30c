"""MIREX05, the public melody corpus of MIREX 2005: its 9 vocal clips, a test set.

`<clip>.wav` (any audio format) and `<clip>REF.txt` in one folder. Of the 13 clips, the 4 from train10 on have no voice
and are left out, as in papers on singing; `clips` names others.

G. Poliner et al., "Melody Transcription From Music Audio: Approaches and Evaluation", IEEE Transactions on Audio,
Speech, and Language Processing 15(4), 2007; labrosa.ee.columbia.edu/projects/melody
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

__all__ = ["GROUP_KEY", "LABEL_KEY", "Config", "class_names", "columns", "read", "sources"]

VOCAL = tuple(f"train{number:02d}" for number in range(1, 10))


class Config(_melody.Settings):
    """Which clips."""

    name: Literal["mirex05"] = "mirex05"
    clips: tuple[str, ...] = Field(VOCAL, min_length=1, description="names without extension; default: the vocal ones")


def sources(config: Config) -> list[Source]:
    """One clip each, all of the test split, sorted by path. ValueError where a clip or its label is missing."""
    pairs = _melody.named_pairs(config, config.clips, "REF.txt")
    return _melody.sources(Clip(path, label, path.stem, path.stem, "test") for path, label in pairs)


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The row of one clip."""
    id = Path(source.path).stem
    return _melody.read_clip(config, source, id, id, pitch_labels.read_times_and_hz, reject)
