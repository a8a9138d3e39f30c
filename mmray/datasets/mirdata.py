"""Corpora that the package mirdata knows, of those in which every recording has one melody: `corpus` names one.

mirdata says which files a corpus has and how its labels are written; `path` is its `data_home`, with the corpus as
mirdata lays it out. It needs the corpus's index, which `initialize(corpus).download(["index"])` of mirdata fetches. No
corpus here has splits of its own: set `prepare.split.by: hash`. mdb_stem_synth, medleydb_pitch, tonas and vocadito are
recordings of one voice or instrument alone.

R. M. Bittner et al., "mirdata: Software for Reproducible Usage of Datasets", ISMIR 2019
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mmray.datasets import Reject, Source, _melody
from mmray.datasets._melody import GROUP_KEY, LABEL_KEY, Clip, class_names, columns
from mmray.features.contour import series
from mmray.features.pitch_labels import PitchTrack
from mmray.storage import at, is_remote

__all__ = ["GROUP_KEY", "LABEL_KEY", "Config", "class_names", "columns", "read", "sources"]

Name = Literal["ikala", "mdb_stem_synth", "medleydb_melody", "medleydb_pitch", "orchset", "scms", "tonas", "vocadito"]


@dataclass(frozen=True)
class _Corpus:
    """What mirdata calls a corpus's audio file and its melody, with the file that holds it, and who shares a group."""

    audio_path: str
    melodies: dict[str, str]  # the default first
    group: Callable[[Any], str]


def _part(pattern: str) -> Callable[[Any], str]:
    """The group is what the first bracket of a pattern finds in a track's id."""

    def find(track: Any) -> str:
        found = re.match(pattern, track.track_id)
        return found[1] if found else str(track.track_id)

    return find


_ARTIST = _part(r"([^_]+)_")  # AimeeNorwich_Child, AimeeNorwich_Child_STEM_04
_CORPORA = {
    "ikala": _Corpus("audio_path", {"f0": "f0_path"}, lambda track: str(track.song_id)),
    "mdb_stem_synth": _Corpus("audio_path", {"f0": "f0_path"}, _ARTIST),
    "medleydb_melody": _Corpus("audio_path", {"melody1": "melody1_path", "melody2": "melody2_path"}, _ARTIST),
    "medleydb_pitch": _Corpus("audio_path", {"pitch": "pitch_path"}, _ARTIST),
    "orchset": _Corpus("audio_path_mono", {"melody": "melody_path"}, _part(r"(.+)-ex\d+$")),  # a movement
    "scms": _Corpus("audio_path", {"pitch": "pitch_path"}, lambda track: str(track.artist)),
    "tonas": _Corpus(
        "audio_path", {"f0_corrected": "f0_path", "f0_automatic": "f0_path"}, _part(r"\d+-[^_]+_([^-]+)")
    ),  # a singer: 24-M1_AMairena-Martinete
    "vocadito": _Corpus("audio_path", {"f0": "f0_path"}, lambda track: str(track.singer_id)),
}


class Config(_melody.Settings):
    """Which corpus, and which of its melodies."""

    name: Literal["mirdata"] = "mirdata"
    corpus: Name
    version: str = Field("default", description="of the corpus's index, as mirdata names it")
    melody: str | None = Field(None, description="where there are several, such as melody2; default: the first")

    @model_validator(mode="after")
    def _the_corpus_has_the_melody(self) -> Self:
        choices = list(_CORPORA[self.corpus].melodies)
        if self.melody not in (None, *choices):
            raise ValueError(f"melody={self.melody!r}: {self.corpus} has {', '.join(choices)}")
        return self

    @property
    def annotation(self) -> str:
        """The name of the melody in mirdata."""
        return self.melody or next(iter(_CORPORA[self.corpus].melodies))


def sources(config: Config) -> list[Source]:
    """One recording each, sorted by path. ValueError where mirdata, the index, a file or the metadata is missing."""
    if is_remote(config.path):
        raise ValueError(
            f"dataset.path={config.path!r}: mirdata reads folders of this machine; bring the corpus into one, or read "
            f"it there with dataset.name: melody_folder"
        )
    _melody.folder(config)
    dataset, ids = _recordings(config)
    missing = [path for path in ids if not path.is_file()]
    if missing:
        raise ValueError(
            f"dataset.path={config.path!r}: {len(missing):,} of the {len(ids):,} recordings of {config.corpus} are not "
            f"there; the first is {missing[0]}; bring them as mirdata lays them out, or read what is there with "
            f"dataset.name: melody_folder"
        )
    labels = {path: _label(config, dataset.track(id)) for path, id in ids.items()}
    pairs = _melody.with_labels(config, list(ids), labels.__getitem__)
    return _melody.sources(Clip(path, label, ids[path], _group(config, path)) for path, label in pairs)


def _label(config: Config, track: Any) -> list[Path]:
    path = getattr(track, _CORPORA[config.corpus].melodies[config.annotation])
    return [Path(path)] if path else []


def _group(config: Config, path: Path) -> str:
    dataset, ids = _recordings(config)
    try:
        return _CORPORA[config.corpus].group(dataset.track(ids[path]))
    except (OSError, AttributeError, KeyError) as error:  # singers stand in a file of their own
        raise ValueError(f"dataset.path={config.path!r}: metadata of {config.corpus} is missing: {error}") from error


@lru_cache(maxsize=4)
def _recordings(config: Config) -> tuple[Any, dict[Path, str]]:
    """mirdata's corpus, and the ids of its tracks by their audio files. Once a process: it reads the index."""
    try:
        import mirdata
    except ImportError as error:
        raise ValueError(
            f'dataset.name: mirdata needs one more package: pip install "mmray[mirdata]" ({error})'
        ) from None
    try:
        dataset = mirdata.initialize(config.corpus, data_home=config.path, version=config.version)
        tracks = dataset.load_tracks()
    except FileNotFoundError as error:
        fetch = f"mirdata.initialize({config.corpus!r}, version={config.version!r}).download(['index'])"
        raise ValueError(f"mirdata has no index of {config.corpus} yet; run {fetch} ({error})") from error
    audio_path = _CORPORA[config.corpus].audio_path
    found = {id: getattr(track, audio_path) for id, track in tracks.items()}
    return dataset, {Path(path): id for id, path in found.items() if path}


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The row of one recording."""
    path = at(source.path)
    dataset, ids = _recordings(config)
    track = dataset.track(ids[path])  # a new one: mirdata's tracks keep what they have read

    def read_label(label: str) -> PitchTrack:
        try:
            melody = getattr(track, config.annotation)
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(f"{label}: mirdata can't read it: {error}") from error
        if melody is None or not len(melody.times):
            raise ValueError(f"{label}: mirdata finds no melody in it")
        times_s, f0_hz, voicing = melody.to_mir_eval()
        series(times_s, f0_hz, label)  # its checks
        return PitchTrack(times_s, np.where(voicing > 0, f0_hz, 0.0))

    return _melody.read_clip(config, source, ids[path], _group(config, path), read_label, reject)
