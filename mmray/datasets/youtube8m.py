"""YouTube-8M and whatever else stands in TFRecord shards of its layout (AudioSet's embeddings, for one).

Video level: `tf.train.Example` {id, labels, mean_rgb 1024 floats, mean_audio 128 floats}. Frame level:
`tf.train.SequenceExample` {context {id, labels}, feature lists {rgb: 1024 bytes, audio: 128 bytes, one a second}}.
Older releases call the id `video_id`; test shards carry no labels. Frames stay quantised:
`mmray.features.quantization` turns them into floats. What people wrote about the videos can be joined to them, see
`mmray.datasets._video_text`, and vectors that other runs made of them, see `mmray.datasets._joined`.

S. Abu-El-Haija et al., "YouTube-8M: A Large-Scale Video Classification Benchmark", 2016; research.google.com/youtube8m
"""

from __future__ import annotations

import csv
import functools
import glob
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from mmray.datasets import Reject, Rejected, Source, _joined, _text_counts, _video_text
from mmray.datasets._joined import Join, Joined
from mmray.datasets._text_counts import Counts
from mmray.datasets._text_table import digest, stamps
from mmray.datasets._video_text import Text, VideoText
from mmray.features import text, tfrecord
from mmray.features.tfrecord_shard import read_contents
from mmray.schema import Column, arrow_schema
from mmray.storage import at, is_remote, matching

GROUP_KEY = "id"
LABEL_KEY = "labels"
FEATURES = {
    "video": {"mean_rgb": 1024, "mean_audio": 128},
    "frame": {"rgb": 1024, "audio": 128},
}
BATCH_ROWS = 1024


class Config(BaseModel):
    """Which shards, and what to read of their records."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["youtube8m"] = "youtube8m"
    path: str  # a folder (searched to any depth), a glob pattern, or one shard
    level: Literal["video", "frame"]
    num_classes: PositiveInt  # 4,716 in 2016, 3,862 since 2018
    # name: floats, or bytes of a frame; default: all of the level
    features: dict[str, PositiveInt] = Field(default_factory=dict, min_length=1)
    id_names: tuple[str, ...] = ("id", "video_id")  # the first of these that a record has
    class_names_file: str | None = None  # CSV with columns index and name or display_name, or one name a line
    max_frames: PositiveInt | None = None  # of a video; later ones are dropped
    dtype: Literal["float32", "float16"] = "float32"  # of video-level features as they are stored
    verify_crc: bool = True
    patterns: tuple[str, ...] = ("*.tfrecord", "*.tfrecord.gz")  # names of shards in a folder
    train: tuple[str, ...] = ("train*",)  # names of shards of each split; other names: no split
    val: tuple[str, ...] = ("val*",)
    test: tuple[str, ...] = ("test*",)
    text: Text | None = None  # titles and keywords, joined by id
    joined: tuple[Joined, ...] = ()  # embeddings, joined by id

    @model_validator(mode="before")
    @classmethod
    def _features_of_the_level(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("features") is None and data.get("level") in FEATURES:
            return {**data, "features": FEATURES[data["level"]]}
        return data

    @model_validator(mode="after")
    def _valid(self) -> Self:
        assert self.records  # made once here for its own checks
        if any(joined.key != "id" for joined in self.joined):
            raise ValueError("joined.key: videos are in no groups; leave it out")
        return self

    @property
    def why_corpus_split(self) -> str | None:
        """Why no other split than the corpus's own will do, where that is so."""
        return self.text.why_corpus_split if self.text else None

    @property
    def records(self) -> tfrecord.RecordSpec:
        """The same settings for the reader."""
        is_video = self.level == "video"
        return tfrecord.RecordSpec(
            num_classes=self.num_classes,
            vectors=self.features if is_video else {},
            frames={} if is_video else self.features,
            id_names=self.id_names,
            max_frames=self.max_frames,
            dtype=self.dtype,
        )


def sources(config: Config) -> list[Source]:
    """One shard each, sorted by path."""
    if config.text and config.text.remove_label_words and config.class_names_file is None:
        raise ValueError("dataset.text.remove_label_words needs the labels' names: set dataset.class_names_file")
    paths = _shards(config)
    if not paths:
        raise ValueError(
            f"dataset.path={config.path!r}: no shard there; looked for {', '.join(config.patterns)} (dataset.patterns)"
        )
    for path in paths:
        if not is_remote(path) and not os.access(path, os.R_OK):
            raise ValueError(f"dataset.path={config.path!r}: {path} can't be read: check its permissions")
    found = [Source(str(path), _split(config, path.name), path.stat().st_size) for path in paths]
    # All rows depend on the companions: naming them once is enough to see that they have changed.
    return [replace(found[0], companions=_companions(config)), *found[1:]]


def _companions(config: Config) -> tuple[str, ...]:
    """The files that rows depend on beside the shards."""
    names = [config.class_names_file] if config.text and config.class_names_file else []
    of_text = config.text.companions() if config.text else ()
    return (*names, *of_text, *(path for joined in config.joined for path in joined.companions()))


def _shards(config: Config) -> list[Path]:
    root = at(config.path)
    if root.is_dir():
        if not is_remote(root) and not os.access(root, os.R_OK | os.X_OK):
            raise ValueError(f"dataset.path={config.path!r} can't be read: check its permissions")
        found = {path for pattern in config.patterns for path in root.rglob(pattern)}
    elif root.exists():
        found = {root}
    elif glob.has_magic(config.path):
        found = set(matching(config.path))
    else:
        raise ValueError(f"dataset.path={config.path!r} does not exist; give a folder, a glob pattern or a shard")
    return sorted(path for path in found if path.is_file())


def _split(config: Config, file_name: str) -> str | None:
    for split, patterns in (("train", config.train), ("val", config.val), ("test", config.test)):
        if any(fnmatch(file_name, pattern) for pattern in patterns):
            return split
    return None


def columns(config: Config) -> list[Column]:
    """id, labels, then the features; frame level: also num_frames; then words, and what is joined."""
    of_text = _video_text.columns(config.text) if config.text else []
    found = [*config.records.columns, *of_text, *_joined.columns(config.joined)]
    names = [column.name for column in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"dataset.joined: a column called {name!r} is there already; call it otherwise in columns")
    return found


def class_names(config: Config) -> list[str]:
    """The names in `class_names_file`, else the class numbers. ValueError where it disagrees with `num_classes`."""
    if config.class_names_file is None:
        return [str(k) for k in range(config.num_classes)]
    names = _read_class_names(config.class_names_file)
    if len(names) != config.num_classes:
        raise ValueError(
            f"dataset.class_names_file={config.class_names_file!r} names {len(names)} classes, but "
            f"dataset.num_classes={config.num_classes}; set one to agree with the other"
        )
    return names


def _read_class_names(path: str) -> list[str]:
    try:
        text = at(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"dataset.class_names_file={path!r} can't be read: {error}") from error
    rows = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(rows, [])]
    if "index" not in header or not {"name", "display_name"} & set(header):
        return [line.strip() for line in text.splitlines() if line.strip()]

    index_at = header.index("index")
    name_at = header.index("display_name" if "display_name" in header else "name")
    names: dict[int, str] = {}
    for row in rows:
        if not any(row):
            continue
        if len(row) <= max(index_at, name_at) or not row[index_at].strip().isdecimal():
            raise ValueError(f"{path}, line {rows.line_num}: expected {', '.join(header)}; got {row}")
        index = int(row[index_at])
        if index in names:
            raise ValueError(f"{path}, line {rows.line_num}: class {index} stands there twice")
        names[index] = row[name_at].strip() or str(index)  # a few of YouTube-8M's entities have no name
    if missing := set(range(len(names))) - set(names):
        raise ValueError(f"{path}: {len(names)} classes, but none with index {min(missing)}")
    return [names[k] for k in range(len(names))]


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one shard. ValueError where the whole shard is of the other level."""
    records, counts = config.records, Counts()
    words, join = _opened(config.model_dump_json(), _versions(config))
    schema = arrow_schema(columns(config))

    def on_bad(bad: tfrecord.BadRecord) -> None:
        reject(Rejected(source.path, bad.reason, bad.offset, bad.record))

    for batch in tfrecord.read_batches(
        source.path, records, reject=on_bad, batch_rows=BATCH_ROWS, verify_crc=config.verify_crc
    ):
        rows = batch.to_arrow(records)
        added = []
        if words is not None:
            added += words.columns_of(rows.column("id"), rows.column("labels").to_pylist(), counts)
        if join is not None:
            added += join.columns_of(rows.column("id"))
        rows = pa.RecordBatch.from_arrays([*rows.columns, *added], schema=schema)
        yield rows if words is None else rows.filter(words.wanted(added, counts))
    if words is not None:
        counts.write(_counts_folder(config), source.path)


def _versions(config: Config) -> tuple[tuple[str | int, ...], ...]:
    return tuple(map(tuple, stamps(_companions(config))))


@functools.lru_cache(maxsize=4)
def _opened(values: str, versions: tuple[tuple[str | int, ...], ...]) -> tuple[VideoText | None, Join | None]:
    """What is joined to rows, for these settings, as JSON, and versions of files: opened once a process."""
    config = Config.model_validate_json(values)
    join = Join(config.joined) if config.joined else None
    if config.text is None:
        return None, join
    names = class_names(config) if config.class_names_file else []
    train = [source for source in sources(config) if source.split == "train"]
    label_words = [text.label_words(name) for name in names]
    return VideoText(config.text, label_words, train, lambda: _ids(config, train)), join


def _ids(config: Config, shards: list[Source]) -> Iterator[pa.Array]:
    """The ids of all good records, in pieces that are valid until the next one is asked for.

    The least that can be read of a record is read with them.
    """
    records = config.records
    if records.frames:
        smallest = min(records.frames.items(), key=lambda item: item[1])
        spec = replace(records, vectors={}, frames=dict([smallest]), max_frames=1)
    else:
        spec = replace(records, vectors={})
    for shard in shards:
        for batch in tfrecord.read_batches(
            shard.path, spec, reject=lambda bad: None, verify_crc=config.verify_crc, reuse_buffers=True
        ):
            yield batch.ids


def _counts_folder(config: Config) -> Path:
    """Where what was found of the text is kept, for these settings and versions of files."""
    assert config.text is not None
    return at(config.text.cache) / f"counts-{digest([config.model_dump(mode='json'), _versions(config)])}"


def split_report(config: Config) -> str:
    """The shards of each split; and of text, what was matched and how it overlaps with labels."""
    every = sources(config)
    found = Counter(source.split or "no split" for source in every)
    shards = "shards: " + ", ".join(f"{name} {count:,}" for name, count in found.items())
    if config.text is None:
        return shards
    table_rows = len(config.text.open_table().ids)
    return f"{shards}\n{_text_counts.report(_counts_folder(config), [source.path for source in every], table_rows)}"


def detect(path: str, num_classes: int = 1 << 20, num_records: int = 16) -> Config:
    """A config that reads this shard, from what all of its first records have in common.

    The number of classes doesn't stand in a shard: `num_classes` only bounds what is taken for a label. ValueError
    where the file is no TFRecord shard, or its records have no id or nothing to read.
    """
    contents = read_contents(path, num_records)
    common = [set(record.features.items()) for record in contents]
    features = dict(sorted(set.intersection(*common)))
    is_frame = any(record.feature_lists for record in contents)
    if is_frame:
        sizes = [
            {name: size for name, (_, kind, size) in record.feature_lists.items() if kind == "bytes" and size > 0}
            for record in contents
        ]
    else:
        sizes = [
            {name: count for name, (kind, count) in record.features.items() if kind == "float" and count > 1}
            for record in contents
        ]
    wanted = {name: size for name, size in sizes[0].items() if all(other.get(name) == size for other in sizes)}
    ids = [name for name, (kind, count) in features.items() if kind == "bytes" and count == 1]
    ids.sort(key=lambda name: (name not in ("id", "video_id"), name))
    if not ids or not wanted:
        what = "no id (a feature of one bytes value)" if not ids else "no feature of one size"
        raise ValueError(f"{path}: the records have {what} in common; the first has {contents[0]}")
    return Config(
        path=path,
        level="frame" if is_frame else "video",
        num_classes=num_classes,
        features=wanted,
        id_names=(ids[0],),
    )


@dataclass(frozen=True, eq=False)
class ShardReport:
    """What stands in one shard, every checksum verified."""

    source: Source
    num_rows: int
    num_unlabelled: int
    label_counts: npt.NDArray[np.int64]  # [label], up to the largest label found
    frame_counts: npt.NDArray[np.int64]  # [frames of a video] -> videos; empty at video level
    ids: pa.StringArray
    rejected: list[Rejected] = field(default_factory=list)


def verify(config: Config, source: Source) -> ShardReport:
    """Read a whole shard and report on it; nothing that stands in it raises, not even records of the other level."""
    rejected: list[Rejected] = []
    ids: list[pa.Array] = []
    label_counts = frame_counts = np.zeros(0, np.int64)
    num_unlabelled = 0
    try:
        for batch in tfrecord.read_batches(
            source.path,
            config.records,
            reject=lambda bad: rejected.append(Rejected(source.path, bad.reason, bad.offset, bad.record)),
            reuse_buffers=True,
        ):
            ids.append(pa.concat_arrays([batch.ids, pa.array([], pa.string())]))  # a copy: the batch's memory is reused
            label_counts = _added(label_counts, np.bincount(batch.labels))
            num_unlabelled += int(np.count_nonzero(np.diff(batch.label_offsets) == 0))
            if config.level == "frame":
                frame_counts = _added(frame_counts, np.bincount(np.diff(batch.frame_offsets)))
    except tfrecord.SchemaError as error:
        rejected.append(Rejected(source.path, str(error)))
    all_ids = pa.concat_arrays(ids) if ids else pa.array([], pa.string())
    return ShardReport(source, len(all_ids), num_unlabelled, label_counts, frame_counts, all_ids, rejected)


def _added(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The sum of two histograms, the shorter one continued by zeros."""
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


@dataclass(frozen=True, eq=False)
class CorpusReport:
    """What stands in many shards."""

    num_shards: int
    num_bytes: int
    num_rows: int
    num_unlabelled: int
    rows_of_split: dict[str, int]  # "" for shards whose name implies no split
    label_counts: npt.NDArray[np.int64]
    frame_counts: npt.NDArray[np.int64]
    duplicated_ids: dict[str, list[str]]  # id -> the shards it stands in, one entry an occurrence
    rejected: list[Rejected]

    @property
    def num_classes(self) -> int:
        """The smallest number of classes that has room for every label found."""
        return len(self.label_counts)


def merge(reports: list[ShardReport]) -> CorpusReport:
    """The report on all shards together, in the order given."""
    label_counts = frame_counts = np.zeros(0, np.int64)
    rows_of_split: dict[str, int] = {}
    for report in reports:
        label_counts = _added(label_counts, report.label_counts)
        frame_counts = _added(frame_counts, report.frame_counts)
        split = report.source.split or ""
        rows_of_split[split] = rows_of_split.get(split, 0) + report.num_rows
    return CorpusReport(
        num_shards=len(reports),
        num_bytes=sum(report.source.num_bytes for report in reports),
        num_rows=sum(report.num_rows for report in reports),
        num_unlabelled=sum(report.num_unlabelled for report in reports),
        rows_of_split=rows_of_split,
        label_counts=label_counts,
        frame_counts=frame_counts,
        duplicated_ids=_duplicated_ids(reports),
        rejected=[rejected for report in reports for rejected in report.rejected],
    )


def _duplicated_ids(reports: list[ShardReport]) -> dict[str, list[str]]:
    ids = pa.chunked_array([report.ids for report in reports], pa.string())
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    found: dict[str, list[str]] = {id_: [] for id_ in sorted(repeated.to_pylist())}
    for report in reports if found else ():
        for id_ in report.ids.filter(pc.is_in(report.ids, value_set=repeated)).to_pylist():
            found[id_].append(report.source.path)
    return found
