"""What the melody corpora share: a piece of music and the label of its melody become one row.

A row holds the CFP feature of the whole clip (mmray.features.cfp), the label on the feature's frames, and the label as
it stands in the corpus, which is what estimates are scored against. The feature is scaled to 0 .. 1 and stored as
float16, which rounds it by at most 2.4e-4.

A clip is read whole. Recordings longer than `max_clip_s` are refused: `mmray predict --input` streams them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, PositiveFloat

from mmray.config import Section
from mmray.datasets import Reject, Rejected, Source
from mmray.features import audio
from mmray.features.cfp import Cfp
from mmray.features.cfp import Settings as CfpSettings
from mmray.features.contour import to_grid
from mmray.features.pitch_labels import PitchTrack, check_covers
from mmray.schema import Column, arrow_schema
from mmray.storage import at

GROUP_KEY = "group"
LABEL_KEY = "ref_times_s"
Samples = npt.NDArray[np.float32]


class Settings(Section):
    """What every melody corpus is told. Each module names itself and adds its own."""

    name: str
    path: str
    labels: Literal["required", "optional"] = Field(
        "required", description="optional: a clip without a label file is a row without a label"
    )
    mix: audio.Mix = Field("mean", description="how channels become one")
    max_clip_s: PositiveFloat = Field(600, description="longer clips are refused; a clip is held in memory")
    cfp: CfpSettings = CfpSettings()


@dataclass(frozen=True)
class Clip:
    """One recording: its file, that of its label, its name, whom it shares a singer or song with, and its split."""

    path: Path
    label: Path | None
    id: str
    group: str
    split: str | None = None
    others: tuple[Path, ...] = ()  # further files that its rows are made of

    def source(self) -> Source:
        """The clip as a piece of work; the label, if there is one, is its first companion."""
        companions = ((self.label,) if self.label else ()) + self.others
        return Source(str(self.path), self.split, self.path.stat().st_size, tuple(map(str, companions)))


def columns(settings: Settings) -> list[Column]:
    """Name, group, number of frames, feature, label on the frames, label as it stands; lists are empty without one."""
    return [
        Column(name="id", dtype="string"),
        Column(name=GROUP_KEY, dtype="string"),
        Column(name="num_frames", dtype="int32"),
        Column(name="cfp", dtype="float16", shape=(None, 3, settings.cfp.num_bins)),
        Column(name="f0_hz", dtype="float32", shape=(None,), unit="Hz"),
        Column(name=LABEL_KEY, dtype="float64", shape=(None,), unit="s"),
        Column(name="ref_f0_hz", dtype="float64", shape=(None,), unit="Hz"),
    ]


def class_names(settings: Settings) -> list[str]:
    """None: a melody is a pitch, not a class."""
    return []


def folder(settings: Settings, *below: str) -> Path:
    """The corpus's folder, or one below it; ValueError where there is none."""
    found = at(settings.path).joinpath(*below)
    if not found.is_dir():
        wanted = f"no folder {'/'.join(below)} in it" if below and at(settings.path).is_dir() else "not a folder"
        raise ValueError(f"dataset.path={settings.path!r}: {wanted}; give the folder that the corpus lies in")
    return found


def audio_files(root: Path, pattern: str = "*") -> list[Path]:
    """The audio files of a folder by their extension, sorted; `**/*` searches it to any depth. Hidden ones are not."""
    return sorted(
        path
        for path in root.glob(pattern)
        if path.suffix.lower() in audio.SUFFIXES and path.name[0] != "." and path.is_file()
    )


def with_labels(
    settings: Settings, paths: Sequence[Path], candidates: Callable[[Path], Iterable[Path]]
) -> list[tuple[Path, Path | None]]:
    """Each audio file with the one of its `candidates` that exists, its label.

    ValueError where a label is missing, unless labels are optional, or where two could be meant.
    """
    pairs: list[tuple[Path, Path | None]] = []
    for path in paths:
        found = list(dict.fromkeys(label for label in candidates(path) if label.is_file()))
        if len(found) > 1:
            raise ValueError(f"{path} has more than one label: {', '.join(map(str, found))}; leave one of them there")
        pairs.append((path, found[0] if found else None))
    missing = [path for path, label in pairs if label is None]
    if missing and settings.labels == "required":
        places = " or ".join(map(str, dict.fromkeys(candidates(missing[0]))))
        raise ValueError(
            f"{len(missing):,} of {len(paths):,} clips have no label; the first is {missing[0]}, looked for "
            f"{places or 'none, as the corpus has none'}; bring the labels, or set dataset.labels: optional"
        )
    return pairs


def karaoke_pairs(settings: Settings) -> list[tuple[Path, Path | None]]:
    """Audio and labels of the layout of MIR-1K and iKala: `Wavfile/NAME.wav` (or .flac, ...) and `PitchLabel/NAME.pv`.

    ValueError where there is no audio, or where one of the two is missing.
    """
    music, labels = folder(settings, "Wavfile"), at(settings.path) / "PitchLabel"
    paths = audio_files(music)
    if not paths:
        raise ValueError(f"dataset.path={settings.path!r}: no audio file in {music}")
    stems = {path.stem for path in paths}
    orphans = [label for label in sorted(labels.glob("*.pv")) if label.stem not in stems and label.name[0] != "."]
    if orphans:
        raise ValueError(
            f"{len(orphans):,} labels have no audio file; the first is {orphans[0]}, looked for "
            f"{music / orphans[0].stem} with one of {', '.join(audio.SUFFIXES)}; bring the audio or remove the label"
        )
    return with_labels(settings, paths, lambda path: [labels / f"{path.stem}.pv"])


def named_pairs(settings: Settings, stems: Sequence[str], label_suffix: str) -> list[tuple[Path, Path | None]]:
    """Audio files of the corpus's folder by their names without extension, with labels `NAME<label_suffix>`.

    ValueError where one is missing.
    """
    root = folder(settings)
    paths = [path for path in audio_files(root) if path.stem in stems]
    missing = sorted(set(stems) - {path.stem for path in paths})
    if missing:
        raise ValueError(
            f"dataset.path={settings.path!r}: no audio file for {', '.join(missing)}; looked for "
            f"{root / missing[0]} with one of {', '.join(audio.SUFFIXES)}; bring it, or list in dataset.clips what is "
            f"there"
        )
    return with_labels(settings, paths, lambda path: [root / (path.stem + label_suffix)])


def sources(clips: Iterable[Clip]) -> list[Source]:
    """The clips as pieces of work, sorted by path. ValueError where a name stands twice or a group in two splits."""
    ordered = sorted(clips, key=lambda clip: str(clip.path))
    twice = [id for id, count in Counter(clip.id for clip in ordered).items() if count > 1]
    if twice:
        found = ", ".join(str(clip.path) for clip in ordered if clip.id == twice[0])
        raise ValueError(f"clip {twice[0]!r} stands there more than once: {found}; leave one of them there")
    check_groups(ordered)
    return [clip.source() for clip in ordered]


def check_groups(clips: Iterable[Clip]) -> None:
    """ValueError where clips of one group (a singer, a song) stand in two splits: the scores would flatter."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        if clip.split is not None:
            found[clip.group][clip.split].append(clip.id)
    for group, splits in found.items():
        if len(splits) > 1:
            listed = "; ".join(f"{split}: {_shortened(ids)}" for split, ids in splits.items())
            raise ValueError(
                f"group {group!r} stands in {len(splits)} splits ({listed}), but what shares a singer or song must "
                f"stand in one; move or rename the clips"
            )


def _shortened(ids: list[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most:,} more" if len(ids) > most else "")


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text, and looks random."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48


def read_samples(settings: Settings, path: str, mix: audio.Mix) -> Samples:
    """The samples of a clip, (n,), at the feature's rate. ValueError where it can't be used, or is too long."""
    rate = settings.cfp.sample_rate_hz
    blocks: list[Samples] = []
    num_samples = 0
    for block in audio.blocks(path, rate, mix):
        blocks.append(block)
        num_samples += len(block)
        if num_samples > settings.max_clip_s * rate:
            raise ValueError(
                f"{path}: longer than dataset.max_clip_s={settings.max_clip_s:g} seconds; cut it into clips, "
                f"raise that, or extract its melody with `mmray predict --input`, which streams"
            )
    return np.concatenate(blocks)


def read_clip(
    settings: Settings,
    source: Source,
    id: str,
    group: str,
    read_label: Callable[[str], PitchTrack],
    reject: Reject,
) -> Iterator[pa.RecordBatch]:
    """The row of a source whose only companion, if any, is its label; what can't be used goes to `reject`."""
    label = source.companions[0] if source.companions else None
    versions = [(id, lambda: read_samples(settings, source.path, settings.mix))]
    return read_rows(settings, source, label, read_label, group, versions, reject)


def read_rows(
    settings: Settings,
    source: Source,
    label: str | None,
    read_label: Callable[[str], PitchTrack],
    group: str,
    versions: Iterable[tuple[str, Callable[[], Samples]]],
    reject: Reject,
) -> Iterator[pa.RecordBatch]:
    """A row for each version of a clip, given by its id and the function that reads its samples.

    All versions share one label. What can't be used goes to `reject`.
    """
    track = None
    try:
        if label is not None:
            track = read_label(label)
        elif settings.labels == "required":
            raise ValueError("has no label; bring it, or set dataset.labels: optional")
    except ValueError as error:
        reject(_rejected(label or source.path, error))
        return
    for id, read_samples in versions:
        try:
            samples = read_samples()
            feature = _cfp(settings.cfp)(samples)
            if not len(feature):
                rate = settings.cfp.sample_rate_hz
                raise ValueError(f"too short for one frame: {len(samples):,} samples at {rate:,} Hz")
        except ValueError as error:
            reject(_rejected(source.path, error))
            continue
        f0_hz = None
        try:
            if track is not None:
                check_covers(track, len(samples) / settings.cfp.sample_rate_hz, str(label))
                f0_hz = to_grid(track.times_s, track.f0_hz, settings.cfp.frame_times_s(len(feature)))
        except ValueError as error:
            reject(_rejected(str(label), error))
            return
        yield _row(settings, id, group, feature, f0_hz, track)


def _rejected(path: str, error: ValueError) -> Rejected:
    """The input that an error names. Its reason need not name it again, and begins with what is wrong, not where."""
    reason = str(error).removeprefix(path).lstrip(":, ")
    if at := re.match(r"(line \d+): ", reason):
        reason = f"{reason.removeprefix(at[0])} ({at[1]})"
    return Rejected(path, reason)


def _row(
    settings: Settings,
    id: str,
    group: str,
    feature: npt.NDArray[np.float32],
    f0_hz: npt.NDArray[np.float64] | None,
    track: PitchTrack | None,
) -> pa.RecordBatch:
    """One row, of a scaled feature (T, 3, F), the label on its frames (T,), and the label as it stands."""
    values: list[object] = [id, group, len(feature), feature.astype(np.float16).tobytes()]
    values += [[], [], []] if f0_hz is None or track is None else [f0_hz, track.times_s, track.f0_hz]
    schema = arrow_schema(columns(settings))
    arrays = [pa.array([value], field.type) for value, field in zip(values, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@lru_cache(maxsize=4)
def _cfp(settings: CfpSettings) -> Cfp:
    return Cfp(settings)  # holds the filterbank and the window: made once a process
