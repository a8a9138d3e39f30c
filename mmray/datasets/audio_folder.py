"""Recordings with one class each, cut into segments: a folder with a folder per class, or a table of files.

    music/Angry/one.flac                     dataset: {name: audio_folder, path: music}
    music/Happy/two.mp3

    music/labels.csv                         dataset: {name: audio_folder, path: music/labels.csv,
    track,emotion,file                                 columns: {path: file, label: emotion, group: track}}
    17,sad,audio/17.mp3

One row is one segment of a recording, or an altered copy of one. Recordings may be hours long and files larger than
memory: a task reads some ten minutes of one file, and seeks to them.

Splits. `track`: no group (a recording, or what the table says belongs together) stands in two splits; each class is
divided as nearly by the fractions of its playing time as whole groups allow, and only `augment_splits` get altered
copies. `segment`: every row, copies included, is drawn into a split by itself, each class in the same shares. Pieces of
one recording then stand in train and in test, even the same piece shifted in pitch, and scores flatter: it is here to
reproduce publications that did so. `split_report` says how the division came out.

Silence, clipping and samples beyond full scale are kept as they are. A file that can't be read, holds a number that is
not finite, or is too short for one segment is rejected, as are the segments that damage within a file concerns.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, model_validator

from mmray.datasets import Reject, Rejected, Source
from mmray.datasets._listing import (
    TABLES,
    Columns,
    Listed,
    check_names,
    empty_folders,
    in_folders,
    in_table,
    same_content,
    vocabulary,
)
from mmray.datasets._splits import SPLITS, Shares, SplitName, split_groups, split_rows
from mmray.features import audio, audio_augment, audio_features, segments
from mmray.schema import Column, arrow_schema
from mmray.storage import at

GROUP_KEY = "group"
LABEL_KEY = "labels"

Samples = NDArray[np.float32]

_SPAN_S = 600.0  # of a file that one source reads
_REMEDY = (  # of too few recordings of a class
    "bring more recordings of it, set dataset.split.fractions for fewer splits, or dataset.split.by: segment, which "
    "leaks"
)
# Sound that libsndfile does not read: listed as rejected, not passed over.
_UNREAD = (".m4a", ".mp4", ".aac", ".wma", ".ape", ".wv", ".mpc", ".amr", ".ra", ".webm", ".mka")


class Augment(audio_augment.Settings):
    """Altered copies of segments. Copy 1 is shifted in pitch and copy 2 stretched where both have choices, and so on
    in turn. A stretched copy is longer or shorter than its original.
    """

    copies: NonNegativeInt = Field(0, description="altered copies of each segment beside the original")
    seed: int = 0

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if self.copies and not (self.kinds or self.gain_db or self.noise_snr_db):
            raise ValueError(
                f"copies={self.copies}, but nothing to alter; give pitch_shift_semitones, time_stretch_rates, gain_db "
                "or noise_snr_db"
            )
        return self


class Split(Shares):
    """How rows are divided. `none` leaves it to `prepare.split`."""

    by: Literal["track", "segment", "none"] = "track"


class Config(segments.Settings):
    """Where the recordings are, how they are cut, altered and divided, and what is stored of them."""

    name: Literal["audio_folder"] = "audio_folder"
    path: str = Field(description="a folder with a folder per class, a table (.csv, .tsv, .parquet), or a sound file")
    columns: Columns = Columns()
    labels: Literal["required", "optional"] = Field(
        "required", description="optional: files directly in the folder, and files without a class, are unlabelled"
    )
    classes: tuple[str, ...] | None = Field(None, description="all classes in order; default: those found, sorted")
    mix: audio.Mix = Field("mean", description="how channels become one")
    silent: Literal["keep", "reject"] = Field("keep", description="segments in which every sample is 0")
    features: audio_features.Settings = audio_features.Settings()
    store: Literal["features", "audio"] = Field("features", description="audio: 16-bit samples, for features later")
    augment: Augment = Augment()
    augment_splits: tuple[SplitName, ...] = Field(("train",), description="split.by track: who gets altered copies")
    split: Split = Split()

    @model_validator(mode="after")
    def _valid(self) -> Self:
        if self.augment.copies and self.split.by == "none":
            raise ValueError(f"augment.copies={self.augment.copies} needs split.by: track or segment, not none")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={list(self.classes)}: a class stands twice; name each once")
        return self

    @property
    def why_corpus_split(self) -> str | None:
        """Why only the division that `split` says will do, where that is so."""
        if self.augment.copies or self.split.by == "segment":
            return f"dataset.split divides the rows (by: {self.split.by}) and says which are augmented"
        return None


@dataclass(frozen=True)
class _Recording:
    """One file with its length, in samples at the rate it is read at and in segments; or why it gives no row."""

    track: Listed
    num_samples: int = 0
    num_segments: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class _Row:
    """One segment (copy 0) of the recording with this number, or an altered copy."""

    recording: int
    index: int
    copy: int


def columns(config: Config) -> list[Column]:
    """Name, group, start, class, and the features (T, D) of the sound, or the sound itself, (n, 1)."""
    rate, size = config.features.sample_rate_hz, config.features.size
    stored = Column(name="features", dtype="float32", shape=(None, size))
    if config.store == "audio":
        stored = Column(name="audio", dtype="int16", shape=(None, 1), unit=f"1/32768 of full scale at {rate} Hz")
    return [
        Column(name="id", dtype="string"),
        Column(name=GROUP_KEY, dtype="string"),
        Column(name="start_s", dtype="float64", unit="s"),
        Column(name=LABEL_KEY, dtype="int32", shape=(None,)),
        stored,
    ]


def class_names(config: Config) -> list[str]:
    """`classes`, or the classes of the corpus, sorted."""
    if config.classes is not None:  # known without the corpus; `sources` finds any other in it
        return list(config.classes)
    return vocabulary(config.classes, _tracks(config))


def sources(config: Config) -> list[Source]:
    """Some ten minutes of one file each, and of one split, in the order of splits and paths.

    A source's size is that of the sound it reads, in memory, times its copies. ValueError where there is no recording,
    where a file or its class is missing or stands twice, and where a class can't be divided.
    """
    return _sources(config, _SPAN_S)


def _sources(config: Config, span_s: float) -> list[Source]:
    recordings = _recordings(config)
    labels = {name: number for number, name in enumerate(vocabulary(config.classes, [r.track for r in recordings]))}
    pieces: dict[tuple[int, str, int], list[_Row]] = defaultdict(list)
    rows, splits = _divided(config, recordings)
    order = {name: place for place, name in enumerate(SPLITS)}
    for row, split in zip(rows, splits, strict=True):
        at_s = segments.start_s(config, config.features.sample_rate_hz, row.index)
        pieces[order[split] if split else 0, str(recordings[row.recording].track.path), int(at_s // span_s)].append(row)
    found = []
    for (place, path, _), members in sorted(pieces.items(), key=lambda piece: piece[0]):
        recording = recordings[members[0].recording]
        sizes = (_span(config, recording, row.index) for row in members)
        num_bytes = 4 * sum(stop - start for start, stop in sizes)
        note = _note(recording, labels, members)
        found.append(Source(path, SPLITS[place] if config.split.by != "none" else None, num_bytes, note=note))
    unusable = [r for r in recordings if r.why_not]
    split = next(iter(config.split.shares)) if config.split.by != "none" else None
    found += [
        Source(str(r.track.path), split, r.track.path.stat().st_size, note=_note(r, labels, [])) for r in unusable
    ]
    return found


def _note(recording: _Recording, labels: Mapping[str, int], rows: Sequence[_Row]) -> str:
    track = recording.track
    return json.dumps(
        {
            "id": track.id,
            "group": track.group,
            "class": track.label,
            "label": labels[track.label] if track.label is not None else None,
            "num_samples": recording.num_samples,
            "rows": sorted((row.index, row.copy) for row in rows),
            "why_not": recording.why_not,
        },
        separators=(",", ":"),
    )


def split_report(config: Config) -> str:
    """How the division came out: each class's shares of playing time, wanted and got, and whether it leaks."""
    recordings = _recordings(config)
    rows, splits = _divided(config, recordings)
    if config.split.by == "none":
        return "split by none: prepare.split divides the rows"
    shares = config.split.shares
    wanted = " / ".join(f"{100 * share:.1f}" for share in shares.values())
    lines = [f"split by {config.split.by} (seed {config.split.seed}), {' / '.join(shares)}: wanted {wanted} %"]
    by_split: dict[SplitName, set[str]] = {name: set() for name in shares}
    counts: dict[str, dict[SplitName, float]] = defaultdict(lambda: dict.fromkeys(shares, 0.0))
    groups: dict[str, dict[SplitName, set[str]]] = defaultdict(lambda: {name: set() for name in shares})
    for row, split in zip(rows, splits, strict=True):
        assert split is not None  # `by` is not none
        track = recordings[row.recording].track
        by_split[split].add(track.group)
        if row.copy == 0 or config.split.by == "segment":
            start, stop = _span(config, recordings[row.recording], row.index)
            label = track.label if track.label is not None else "(unlabelled)"
            counts[label][split] += stop - start
            groups[label][split].add(track.group)
    for label in sorted(counts):
        total = sum(counts[label].values())
        got = [counts[label][name] / total for name in shares]
        miss = max(abs(g - w) for g, w in zip(got, shares.values(), strict=True))
        numbers = " / ".join(str(len(groups[label][name])) for name in shares)
        lines.append(
            f"  {label}: {' / '.join(f'{100 * g:.1f}' for g in got)} %, off by {100 * miss:.1f} points; "
            f"{numbers} groups"
        )
    if config.split.by == "segment":
        seen = by_split.get("train", set())
        test = [recordings[r.recording].track.group for r, s in zip(rows, splits, strict=True) if s == "test"]
        if test:
            shared = sum(group in seen for group in test)
            lines.append(
                f"  this split leaks: {shared:,} of {len(test):,} test rows come from a group that train has, too; "
                "scores flatter (split.by: track does not leak)"
            )
    return "\n".join(lines)


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source, one a batch: of each segment the original, then its copies."""
    note: dict[str, Any] = json.loads(source.note)
    if note["why_not"]:
        reject(Rejected(source.path, note["why_not"]))
    copies: dict[int, list[int]] = defaultdict(list)
    for index, copy in note["rows"]:
        copies[index].append(copy)
    rate = config.features.sample_rate_hz
    pieces = segments.read(source.path, config, rate, note["num_samples"], copies, config.mix)
    for (index, numbers), piece in zip(copies.items(), pieces, strict=True):
        at_s = segments.start_s(config, rate, index)
        id = f"{note['id']}@{_seconds(at_s)}"
        for copy in numbers:
            try:
                if isinstance(piece, ValueError):
                    raise piece
                if config.silent == "reject" and not piece.any():
                    raise ValueError("silent: every sample is 0; set dataset.silent: keep to have it as a row")
                stored = _stored(config, _altered(config, piece, id, copy))
            except ValueError as error:
                # Every row that was planned is a row or is listed here, so that the sum is known.
                reason = str(error).removeprefix(source.path).lstrip(":, ")
                reject(Rejected(source.path, f"{reason} (segment at {_seconds(at_s)} s)", record=index))
                continue
            labels = [] if note["label"] is None else [note["label"]]
            values = [id + (f"~{copy}" if copy else ""), note["group"], at_s, labels, stored.tobytes()]
            schema = arrow_schema(columns(config))
            arrays = [pa.array([value], field.type) for value, field in zip(values, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _altered(config: Config, samples: Samples, id: str, copy: int) -> Samples:
    """Copy 0 is the original."""
    if copy == 0:
        return samples
    augment = config.augment
    kind = augment.kinds[(copy - 1) % len(augment.kinds)] if augment.kinds else None
    rng = audio_augment.rng_of(augment.seed, id, copy)
    return audio_augment.augment(samples, config.features.sample_rate_hz, augment, rng, kind)


def _stored(config: Config, samples: Samples) -> NDArray[np.float32] | NDArray[np.int16]:
    """What a row holds of its sound (n,). As 16-bit integers, sound beyond full scale is clipped."""
    if config.store == "audio":
        integers: NDArray[np.int16] = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype(np.int16)
        return integers
    features: NDArray[np.float32] = _extractor(config.features)(samples)
    return features


@lru_cache(maxsize=4)
def _extractor(settings: audio_features.Settings) -> audio_features.Extractor:
    return audio_features.Extractor(settings)  # holds tables: made once a process


def _seconds(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


# ---- What there is


def _tracks(config: Config) -> list[Listed]:
    """Every file of the corpus, sorted by path; ValueError where one is missing, stands twice or has no class."""
    path = at(config.path)
    if path.is_dir():
        found = _in_folders(config, path)
    elif not path.is_file():
        raise ValueError(
            f"dataset.path={config.path!r} does not exist; give a folder with a folder per class, or a table"
        )
    elif path.suffix.lower() in TABLES:
        found = in_table(path, config.columns, label_required=config.labels == "required")
    else:
        found = [Listed(path, path.name, "", None, str(path))]
    if not found:
        raise ValueError(
            f"dataset.path={config.path!r}: no sound file there; give a folder with a folder per class that hold files "
            f"ending in {', '.join(audio.SUFFIXES)}"
        )
    found = sorted(map(_named, found), key=lambda track: str(track.path))
    check_names(found)
    unlabelled = [track for track in found if track.label is None]
    if unlabelled and config.labels == "required":
        raise ValueError(
            f"{len(unlabelled):,} of {len(found):,} files have no class; the first is {unlabelled[0].path} "
            f"({unlabelled[0].where}); put it into a class's folder or give its class, or set dataset.labels: optional"
        )
    return found


def _named(file: Listed) -> Listed:
    """A recording is called by its path without the suffix."""
    id = Path(file.id).with_suffix("").as_posix()
    return replace(file, id=id, group=file.group or id)


def _in_folders(config: Config, root: Path) -> list[Listed]:
    found = in_folders(root, lambda name: Path(name).suffix.lower() in audio.SUFFIXES + _UNREAD)
    empty = empty_folders(root, found)
    if found and empty:
        raise ValueError(
            f"dataset.path={config.path!r}: no sound file in {', '.join(empty)}; every folder there is a class: fill "
            "or remove it"
        )
    return found


def _check_contents(tracks: Sequence[Listed]) -> None:
    """ValueError where two files are the same recording: they might stand in two classes or splits."""
    for same in same_content(tracks):
        first, second = same[:2]
        if labels := sorted({str(track.label) for track in same[1:]} - {str(first.label)}):
            second = next(track for track in same if str(track.label) == labels[0])
            raise ValueError(
                f"{first.path} ({first.label}) and {second.path} ({second.label}) are the same recording under two "
                "classes; remove it from the wrong one, or both"
            )
        raise ValueError(
            f"{first.path} and {second.path} are the same recording, which would count twice and might stand in two "
            "splits; remove one of them"
        )


def _recordings(config: Config) -> list[_Recording]:
    tracks = _tracks(config)
    _check_contents(tracks)
    return [_recording(config, track) for track in tracks]


def _recording(config: Config, track: Listed) -> _Recording:
    rate = config.features.sample_rate_hz
    try:
        status = track.path.stat()
        length = _length(str(track.path), status.st_size, status.st_mtime_ns)
    except ValueError as error:
        return _Recording(track, why_not=str(error).removeprefix(str(track.path)).lstrip(":, "))
    num_samples = segments.num_samples_at(length, rate)
    if number := segments.num_segments(config, rate, num_samples):
        return _Recording(track, num_samples, number)
    least_s = config.segment_s if config.tail == "drop" else config.min_tail_s
    return _Recording(track, why_not=f"too short: {length.seconds:.2f} s give no segment of at least {least_s:g} s")


@lru_cache(maxsize=1 << 16)
def _length(path: str, num_bytes: int, mtime_ns: int) -> audio.Length:
    """The length of a file as long as it is the same file: a corpus is listed several times in a run."""
    return audio.length(path)


def _span(config: Config, recording: _Recording, index: int) -> tuple[int, int]:
    return segments.span(config, config.features.sample_rate_hz, recording.num_samples, index)


# ---- Which split


def _divided(config: Config, recordings: Sequence[_Recording]) -> tuple[list[_Row], list[SplitName | None]]:
    """Every row of the corpus and its split, None for all of them where there is none. ValueError: see `sources`."""
    shares, copies = config.split.shares, config.augment.copies
    everything = [(number, index) for number, r in enumerate(recordings) for index in range(r.num_segments)]
    if config.split.by == "none":
        return [_Row(number, index, 0) for number, index in everything], [None] * len(everything)
    if config.split.by == "segment":
        rows = [_Row(number, index, copy) for number, index in everything for copy in range(copies + 1)]
        labels = [recordings[row.recording].track.label for row in rows]
        return rows, list(split_rows(labels, shares, config.split.seed))
    seconds: dict[str, dict[str | None, float]] = defaultdict(lambda: defaultdict(float))
    for recording in recordings:
        if recording.num_segments:
            track = recording.track
            seconds[track.group][track.label] += recording.num_samples / config.features.sample_rate_hz
    try:
        by_group = split_groups(seconds, shares, config.split.seed, _REMEDY)
    except ValueError as error:
        raise ValueError(f"dataset.path={config.path!r}: {error}") from None
    rows = []
    splits: list[SplitName | None] = []
    for number, index in everything:
        split = by_group[recordings[number].track.group]
        numbers = range(copies + 1) if split in config.augment_splits else range(1)
        rows += [_Row(number, index, copy) for copy in numbers]
        splits += [split for _ in numbers]
    return rows, splits
