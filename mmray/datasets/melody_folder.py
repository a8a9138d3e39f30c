"""Any folder of music with pitch labels: audio files of any format, and label files of the same names.

`song.mp3` has its label beside it, as `song.csv`, `song.txt`, `song.f0` (time in s and frequency in Hz) or `song.pv`
(a MIDI pitch a line), or in the folder `labels_path`: at the same place below it, or directly in it. Folders `train`,
`val` and `test` directly below `path` give the split; without them set `prepare.split.by: hash`. `path` may also be
one audio file; music without labels, to be predicted, needs `labels: optional`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from mmray.datasets import Reject, Source, _melody
from mmray.datasets._melody import GROUP_KEY, LABEL_KEY, Clip, class_names, columns
from mmray.features import audio, pitch_labels
from mmray.features.pitch_labels import PitchTrack
from mmray.storage import at

__all__ = ["GROUP_KEY", "LABEL_KEY", "Config", "class_names", "columns", "read", "sources"]

SPLITS = ("train", "val", "test")


class Config(_melody.Settings):
    """Where audio and labels are, and which clips belong together."""

    name: Literal["melody_folder"] = "melody_folder"
    labels_path: str | None = Field(None, description="folder of the labels; default: beside the audio")
    label_suffixes: tuple[str, ...] = Field(
        (".csv", ".txt", ".f0", ".pv"), min_length=1, description="what follows a clip's name; also ends like REF.txt"
    )
    pv: Literal["mir1k", "ikala"] = Field("mir1k", description="whose .pv files: every 20 ms or every 32 ms")
    group: str = Field(
        "stem",
        description="what must not stand in two splits: stem, each clip by its name; parent, the clips of a folder; "
        "or a regular expression that finds the group (its first bracket, if any) in a clip's path below dataset.path",
    )

    @model_validator(mode="after")
    def _group_is_an_expression(self) -> Self:
        try:
            re.compile(self.group)
        except re.error as error:
            raise ValueError(f"group={self.group!r}: choose stem, parent or a regular expression ({error})") from None
        return self


def sources(config: Config) -> list[Source]:
    """One audio file each, sorted by path. ValueError where there is none, or a label is missing."""
    path = at(config.path)
    if not path.exists():
        raise ValueError(f"dataset.path={config.path!r} does not exist; give a folder or an audio file")
    if config.labels_path is not None and not at(config.labels_path).is_dir():
        raise ValueError(f"dataset.labels_path={config.labels_path!r} is not a folder; give the one with the labels")
    paths = _melody.audio_files(path, "**/*") if path.is_dir() else [path]
    if not paths:
        raise ValueError(f"dataset.path={config.path!r}: no audio file there; looked for {', '.join(audio.SUFFIXES)}")
    pairs = _melody.with_labels(config, paths, lambda found: _candidates(config, found))
    return _melody.sources(Clip(found, label, *_name(config, found), _split(config, found)) for found, label in pairs)


def _below(config: Config, path: Path) -> Path:
    """A clip's path below the corpus's, without extension."""
    return path.with_suffix("").relative_to(config.path) if path != at(config.path) else Path(path.stem)


def _candidates(config: Config, path: Path) -> list[Path]:
    places = [path.parent]
    if config.labels_path is not None:
        places = [at(config.labels_path) / _below(config, path).parent, at(config.labels_path)]
    return [place / (path.stem + suffix) for place in places for suffix in config.label_suffixes]


def _split(config: Config, path: Path) -> str | None:
    below = _below(config, path)
    return below.parts[0] if len(below.parts) > 1 and below.parts[0] in SPLITS else None


def _name(config: Config, path: Path) -> tuple[str, str]:
    """Id and group: the id is the path below the corpus's."""
    id = _below(config, path).as_posix()
    if config.group == "stem":
        return id, path.stem
    if config.group == "parent":
        return id, _below(config, path).parent.as_posix()
    found = re.search(config.group, id)
    if found is None:
        raise ValueError(f"{path}: dataset.group={config.group!r} finds no group in {id!r}")
    return id, found[1] if found.re.groups else found[0]


def _read_label(config: Config, label: str) -> PitchTrack:
    if not label.endswith(".pv"):
        return pitch_labels.read_times_and_hz(label)
    return pitch_labels.read_ikala(label) if config.pv == "ikala" else pitch_labels.read_mir1k(label)


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The row of one clip."""
    id, group = _name(config, at(source.path))
    return _melody.read_clip(config, source, id, group, lambda label: _read_label(config, label), reject)
