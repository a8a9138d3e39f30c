"""MIR-1K: 1,000 clips of Chinese karaoke by amateurs, 4 to 13 s, the accompaniment left and the voice right.

`Wavfile/<singer>_<song>_<clip>.wav` (any audio format) and `PitchLabel/<the same>.pv`. The clips of five singers are
the test split, as in the papers that report on it; no singer stands in two splits.

`remix` adds training clips in which voice and accompaniment are mixed anew.

C.-L. Hsu and J.-S. R. Jang, "On the Improvement of Singing Voice Separation for Monaural Recordings Using the MIR-1K
Dataset", IEEE Transactions on Audio, Speech, and Language Processing 18(2), 2010
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, NonNegativeInt, model_validator

from mmray.config import Section
from mmray.datasets import Reject, Source, _melody
from mmray.datasets._melody import GROUP_KEY, LABEL_KEY, Clip, Samples, class_names, columns
from mmray.features import pitch_labels

__all__ = ["GROUP_KEY", "LABEL_KEY", "Config", "class_names", "columns", "read", "sources"]

TEST_SINGERS = ("leon", "stool", "tammy", "titon", "yifen")


class Remix(Section):
    """Further training rows: a training clip's voice and accompaniment, mixed anew. `<id>~1` is the first of a clip.
    They are made of the corpus's own training clips, so `prepare.split.by: corpus` is the only split for them.
    """

    copies: NonNegativeInt = 0
    gain_db: tuple[float, float] = Field((-5, 5), description="bounds of the voice's gain over the accompaniment")
    swap: bool = Field(False, description="take the accompaniment of another training clip, cut or repeated to length")
    seed: int = 0

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        low, high = self.gain_db
        if not -60 <= low <= high <= 60:
            raise ValueError(f"gain_db={[low, high]}: expected [lowest, highest], within -60 and 60 dB")
        return self


class Config(_melody.Settings):
    """Which clips, and how they are mixed. `mix: right` gives the voice alone."""

    name: Literal["mir1k"] = "mir1k"
    val_singers: tuple[str, ...] = Field(
        ("amy", "bobon"), description="singers of the training clips that are kept for validation"
    )
    remix: Remix = Remix()

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if tested := set(self.val_singers) & set(TEST_SINGERS):
            raise ValueError(f"val_singers={list(self.val_singers)}: {', '.join(sorted(tested))} are test singers")
        if self.remix.copies and self.mix not in ("mean", "sum"):
            raise ValueError(f"mix={self.mix!r} with remix.copies={self.remix.copies}: set mix: mean or sum")
        return self

    @property
    def why_corpus_split(self) -> str | None:
        """Why only the corpus's own split will do, where that is so."""
        return "dataset.remix.copies are made of training clips, for the training split" if self.remix.copies else None


def sources(config: Config) -> list[Source]:
    """One clip each, sorted by path. ValueError where a partner or a validation singer is missing."""
    clips = [
        Clip(path, label, path.stem, _singer(path), _split(config, _singer(path)))
        for path, label in _melody.karaoke_pairs(config)
    ]
    training = [clip for clip in clips if clip.split == "train"]
    singers = {clip.group for clip in clips}
    if training and (absent := [name for name in config.val_singers if name not in singers]):
        raise ValueError(
            f"dataset.val_singers={list(config.val_singers)}: no clip of {', '.join(absent)} in {config.path!r}; "
            f"the training singers there are {', '.join(sorted({clip.group for clip in training}))}; [] leaves none"
        )
    if config.remix.copies and config.remix.swap:
        clips = [replace(clip, others=_accompaniments(config, clip, training)) for clip in clips]
    return _melody.sources(clips)


def _singer(path: Path) -> str:
    matched = re.fullmatch(r"([^_]+)_\d+_\d+", path.stem)
    if not matched:
        raise ValueError(f"{path}: not a name of MIR-1K's, which are like amy_1_03: <singer>_<song>_<clip>")
    return matched[1]


def _split(config: Config, singer: str) -> str:
    if singer in TEST_SINGERS:
        return "test"
    return "val" if singer in config.val_singers else "train"


def _accompaniments(config: Config, clip: Clip, training: list[Clip]) -> tuple[Path, ...]:
    """The clip whose accompaniment each copy of a training clip gets; the same whoever asks."""
    if clip.split != "train":
        return ()
    others = sorted(other.path for other in training if other.id != clip.id)
    if not others:
        raise ValueError("dataset.remix.swap: there is no other training clip to take an accompaniment from")
    draws = [_draw(config, clip.id, copy, "accompaniment") for copy in range(1, config.remix.copies + 1)]
    return tuple(others[int(draw * len(others))] for draw in draws)


def _draw(config: Config, id: str, copy: int, what: str) -> float:
    return _melody.fraction(f"{config.remix.seed}:{id}:{copy}:{what}")


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The row of one clip, then those of its copies."""
    id = Path(source.path).stem
    num_copies = config.remix.copies if source.split == "train" else 0
    others = source.companions[-num_copies:] if num_copies and config.remix.swap else ()
    label = next(iter(source.companions[: len(source.companions) - len(others)]), None)
    versions: list[tuple[str, Callable[[], Samples]]] = [
        (id, partial(_melody.read_samples, config, source.path, config.mix))
    ]
    for copy in range(1, num_copies + 1):
        other = others[copy - 1] if others else source.path
        versions.append((f"{id}~{copy}", partial(_remixed, config, source.path, other, copy)))
    group = _singer(Path(source.path))
    yield from _melody.read_rows(config, source, label, pitch_labels.read_mir1k, group, versions, reject)


def _remixed(config: Config, path: str, other: str, copy: int) -> Samples:
    """The voice of one clip over its own or another clip's accompaniment, float32 (n,)."""
    voice = _melody.read_samples(config, path, "right")
    accompaniment = np.resize(_melody.read_samples(config, other, "left"), len(voice))
    low, high = config.remix.gain_db
    gain_db = low + (high - low) * _draw(config, Path(path).stem, copy, "gain")
    ratio = np.float32(10 ** (gain_db / 40))  # half of the gain up, half of it down: about as loud as before
    mixed: Samples = voice * ratio + accompaniment / ratio
    return mixed / np.float32(2) if config.mix == "mean" else mixed
