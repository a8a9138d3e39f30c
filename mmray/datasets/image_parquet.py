"""Images of one class each in Parquet files, laid out as Hugging Face's datasets are.

    covers/data/train-00000-of-00002.parquet     dataset: {name: image_parquet, path: covers}
    covers/data/train-00001-of-00002.parquet
    covers/data/test-00000-of-00001.parquet

Column `image` is a struct of `bytes` (an image file) and `path`, or plain bytes; column `label` is a whole number,
whose class names stand in the file's metadata under `huggingface`, or the class itself as text. A label that is
missing or -1 is none: a corpus without any label is to be predicted, and needs `classes`.

`path` is a file, a folder, or a pattern, in which `*` goes through folders, too; also in a store: `hf://datasets/...`,
`s3://...`, `gs://...`, and what else fsspec has a package for. `split.by: official` goes by the names of the files or
their folders (train, validation, test). Looking for copies reads all images once before anything else; of a corpus far
away set `duplicates: ignore`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from pydantic import Field

from mmray import storage
from mmray.config import Section
from mmray.datasets import Reject, Source, _images
from mmray.datasets._images import GROUP_KEY, LABEL_KEY, SPLIT_NAMES, SUMMED, Item, Listing, columns
from mmray.datasets._splits import SPLITS, SplitName
from mmray.features import image_hash
from mmray.stores import store_of

__all__ = ["GROUP_KEY", "LABEL_KEY", "SUMMED", "Config", "class_names", "columns", "read", "sources", "split_report"]

_SPAN_BYTES = 32 << 20  # of row groups that a source reads, about
_BATCH_ROWS = 64
_METADATA = b"huggingface"


class Columns(Section):
    """Names of the files' columns."""

    image: str = "image"
    label: str = "label"


class Config(_images.Config):
    """Where the images are, how they are divided, and what is stored of them."""

    name: Literal["image_parquet"] = "image_parquet"
    path: str = Field(description="a Parquet file, a folder or a pattern of them; may begin with hf://, s3:// or gs://")
    columns: Columns = Columns()


@dataclass(frozen=True)
class _File:
    """One file: its path or address, its name within the corpus, and what tells its versions apart."""

    path: str
    id: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class _Scan:
    """What a file holds: row groups, and of each row the label and, where asked for, the image's digest and hash.

    `class_names` are those that its metadata gives to whole numbers, None where there are none.
    """

    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    labels: tuple[int | str | None, ...]
    class_names: tuple[str, ...] | None
    digests: tuple[bytes | None, ...] = ()
    hashes: tuple[int | None, ...] = ()


def class_names(config: Config) -> list[str]:
    """`classes`, or those of the files' metadata in their order; without any, the labels of the corpus, sorted."""
    if config.classes is not None:  # known without the corpus; `sources` finds any other in it
        return list(config.classes)
    return list(_class_names(config, [(file, _scan(config, file, "ignore")) for file in _files(config.path)]))


def sources(config: Config) -> list[Source]:
    """Some row groups of one file each, and of one split. ValueError: see `listing` and `_images.planned`."""
    return sources_of(config, listing(config))


def split_report(config: Config) -> str:
    """How the division came out, and what are copies."""
    return _images.report(config, listing(config))


def listing(config: Config, spelled: Callable[[str], str] = str) -> Listing:
    """Every row of every file, its class as it is `spelled`.

    ValueError where a file can't be read, lacks a column, or is of other classes than the others or `classes`.
    """
    scans = [(file, _scan(config, file, config.duplicates, spelled)) for file in _files(config.path)]
    names = _class_names(config, scans)
    items = [item for file, scan in scans for item in _items(config, file, scan, names)]
    if any(item.label is not None for item in items):  # a corpus to learn from, then
        items = [i if i.label is not None or i.why_not else replace(i, why_not="has no label") for i in items]
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for number, digest in enumerate(itertools.chain.from_iterable(scan.digests for _, scan in scans)):
        if digest is not None:
            by_digest[digest].append(number)
    same = tuple(tuple(copies) for copies in by_digest.values() if len(copies) > 1)
    hashes = tuple(itertools.chain.from_iterable(scan.hashes for _, scan in scans))
    return Listing(tuple(items), names, same, hashes)


def sources_of(config: _images.Config, listing: Listing) -> list[Source]:
    """The sources of a listing of rows."""
    versions = {file.path: f"{file.num_bytes}, {file.mtime_ns}" for file in _files(config.path) if "://" in file.path}
    pieces: dict[tuple[int, str, int], list[Item]] = defaultdict(list)
    order = {name: place for place, name in enumerate((*SPLITS, None))}
    for item in _images.planned(config, listing):
        pieces[order[item.split], item.path, item.span].append(item)
    return [
        _images.source(
            members, [path], listing.class_names, sum(item.num_bytes for item in members), versions.get(path, "")
        )
        for (_, path, _), members in sorted(pieces.items(), key=lambda piece: piece[0])
    ]


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source, a few megabytes at a time."""
    entries = {entry.row: entry for entry in _images.entries(source)}
    rows = [row for row in entries if row is not None]
    values = _images_of(source.path, config.columns.image, min(rows), max(rows) + 1)
    found = ((entries[row], source.path, _bytes_of(value)) for row, value in values if row in entries)
    return _images.rows(config, found, reject)


def _bytes_of(value: pa.Scalar) -> bytes | ValueError:
    data: bytes | None = value.as_py()
    return ValueError("the row holds no bytes of an image") if data is None else data


# ---- What the rows are


def _items(config: Config, file: _File, scan: _Scan, names: tuple[str, ...]) -> Iterator[Item]:
    labels, row, held = iter(scan.labels), 0, 0
    split = _split_of(file)
    for num_rows, num_bytes in zip(scan.group_rows, scan.group_bytes, strict=True):
        for label in itertools.islice(labels, num_rows):
            name, why_not = _named(config, scan, label, names)
            where = f"column {config.columns.label!r}, row {row}"
            yield Item(
                f"{file.id}#{row}", file.path, num_bytes // num_rows, name, where, split=split, row=row,
                span=held // _SPAN_BYTES, why_not=why_not,
            )  # fmt: skip
            row += 1
        held += num_bytes


def _named(config: Config, scan: _Scan, label: int | str | None, names: Sequence[str]) -> tuple[str | None, str]:
    """The class of a label, None for none; and why there is none where there should be."""
    if label is None or label in (-1, ""):
        return None, ""
    if isinstance(label, str):
        name = label
    else:
        own = scan.class_names or names
        if not 0 <= label < len(own):
            given = "the file's metadata names" if scan.class_names else "dataset.classes names"
            return None, f"label {label} is none of the {len(own)} classes that {given}"
        name = own[label]
    if name not in names:
        raise ValueError(
            f"dataset.path={config.path!r}: there are images of class {name!r}, which is not among "
            f"dataset.classes={list(names)}; add it there"
        )
    return name, ""


def _class_names(config: Config, scans: Sequence[tuple[_File, _Scan]]) -> tuple[str, ...]:
    if config.classes is not None:
        return config.classes
    by_names = {scan.class_names: file for file, scan in scans}
    if len(by_names) > 1:
        (first, one), (second, other), *_ = by_names.items()
        raise ValueError(f"{one.path} names the classes {first}, but {other.path} {second}; make them agree")
    (names,) = by_names
    if names is not None:
        return names
    labels = {label for _, scan in scans for label in scan.labels} - {None, -1, ""}
    if len({type(label) for label in labels}) > 1:
        raise ValueError(f"dataset.path={config.path!r}: labels are numbers in some files and text in others")
    if any(isinstance(label, int) for label in labels):
        return tuple(str(number) for number in range(max(int(label) for label in labels if label is not None) + 1))
    return tuple(sorted(str(label) for label in labels))


def _split_of(file: _File) -> SplitName | None:
    """The split that a file's name, or else its folder's, tells: train-00000-of-00002.parquet, test/0000.parquet."""
    for part in reversed(file.id.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in SPLIT_NAMES:
                return SPLIT_NAMES[word]
    folder = file.path.lower().split("/")[-2:][0]  # where the corpus is one folder's files
    return SPLIT_NAMES.get(folder)


# ---- Files


def _scan(config: Config, file: _File, duplicates: str, spelled: Callable[[str], str] = str) -> _Scan:
    scan = _scanned(file, config.columns.image, config.columns.label, duplicates)
    num_rows = sum(scan.group_rows)
    if num_rows and not scan.labels:
        if config.classes is None:
            raise ValueError(
                f"{file.path}: no column {config.columns.label!r}, which dataset.columns.label names; set "
                "dataset.columns: {label: ...}, or, to predict, name the classes of the model: dataset.classes"
            )
        return replace(scan, labels=(None,) * num_rows)
    names = scan.class_names and tuple(map(spelled, scan.class_names))
    labels = tuple(spelled(label) if isinstance(label, str) and label else label for label in scan.labels)
    return replace(scan, labels=labels, class_names=names)


@lru_cache(maxsize=1 << 12)
def _scanned(file: _File, image: str, label: str, duplicates: str) -> _Scan:
    """Kept as long as the file is the same: a corpus is listed several times in a run. No `labels`: no such column."""
    with _opened(file.path) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        _check_image(file, schema, image)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        labels: Sequence[int | str | None] = ()
        if label in schema.names:
            labels = _labels(file, label, parquet.read(columns=[label]).column(label))
        digests: list[bytes | None] = []
        hashes: list[int | None] = []
        if duplicates != "ignore":
            with image_hash.threads() as pool:
                for _, values in _batches(parquet, image, range(len(groups))):
                    digests += (hashlib.sha256(v.as_buffer()).digest() if v.is_valid else None for v in values)
                    if duplicates == "perceptual":
                        hashes += pool.map(image_hash.perceptual_hash, (value.as_py() or b"" for value in values))
    return _Scan(
        tuple(group.num_rows for group in groups),
        tuple(group.total_byte_size for group in groups),
        tuple(labels),
        _names_in(file, schema, label),
        tuple(digests),
        tuple(hashes),
    )


def _check_image(file: _File, schema: pa.Schema, image: str) -> None:
    if image not in schema.names:
        raise ValueError(
            f"{file.path}: no column {image!r}, which dataset.columns.image names; it has {', '.join(schema.names)}; "
            "set dataset.columns: {image: ...}"
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(f"{file.path}: column {image!r} is {kind}; expected bytes, or a struct with a field bytes")


def _labels(file: _File, label: str, column: pa.ChunkedArray) -> list[int | str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (
        pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        raise ValueError(f"{file.path}: column {label!r} is {column.type}; expected whole numbers or text")
    labels: list[int | str | None] = column.to_pylist()
    return labels


def _names_in(file: _File, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """The class names of whole-number labels, as Hugging Face writes them; None where there are none."""
    if label not in schema.names or not pa.types.is_integer(schema.field(label).type):
        return None
    try:
        features = json.loads((schema.metadata or {}).get(_METADATA, b"{}")).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file.path}: its metadata 'huggingface' can't be read: {error}") from None
    if isinstance(names, dict):  # older versions number them
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(map(str, names)) if names else None


def _batches(parquet: pq.ParquetFile, image: str, groups: Iterable[int]) -> Iterator[tuple[int, pa.Array]]:
    """The encoded images of these row groups, some at a time: the first of them as a row of the file, and the bytes."""
    starts = [0]
    for number in range(parquet.metadata.num_row_groups):
        starts.append(starts[-1] + parquet.metadata.row_group(number).num_rows)
    for group in groups:
        first = starts[group]
        # One row group at a time, and no reading ahead: they may be large.
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[image], use_threads=False):
            values = batch.column(0)
            yield first, pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
            first += batch.num_rows


def _images_of(path: str, image: str, start: int, stop: int) -> Iterator[tuple[int, pa.Scalar]]:
    """Row and encoded image of the rows `start` to before `stop` of a file, and of others of their row groups."""
    with _opened(path) as parquet:
        ends = np.cumsum([parquet.metadata.row_group(n).num_rows for n in range(parquet.metadata.num_row_groups)])
        groups = range(int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, stop)) + 1)
        for first, values in _batches(parquet, image, groups):
            yield from enumerate(values, first)


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        filesystem, place = _store(path)
        with filesystem.open_input_file(place) as file:
            yield pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {error}; fetch it again") from None


def _store(path: str) -> tuple[pa_fs.FileSystem, str]:
    """The file system of a path or address, and the place in it."""
    if "://" not in path:
        return pa_fs.LocalFileSystem(), path
    if "?" not in path and storage.is_remote(path):
        return store_of(str(storage.at(path)))
    if path.split("://")[0] in ("s3", "gs", "gcs", "file"):  # region, endpoint
        filesystem, place = pa_fs.FileSystem.from_uri(path)
        return filesystem, place
    import fsspec  # type: ignore[import-untyped]

    try:
        filesystem, place = fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:  # a package that this kind of address takes, or no such kind
        raise ValueError(f"dataset.path={path!r}: {error}") from None
    return pa_fs.PyFileSystem(pa_fs.FSSpecHandler(filesystem)), place


def _files(path: str) -> list[_File]:
    """The files that a path names, sorted. ValueError where there is none."""
    beginning = re.split(r"[*\[]", path)[0]
    base = path if beginning == path else beginning.rpartition("/")[0] or ("/" if path[0] == "/" else ".")
    try:
        filesystem, root = _store(base)
        info = filesystem.get_file_info(root)
        found = [info]
        if info.type == pa_fs.FileType.Directory:
            found = filesystem.get_file_info(pa_fs.FileSelector(root, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"dataset.path={path!r}: {error}") from None
    root = info.path.rstrip("/")
    pattern = f"{root}{path[len(base.rstrip('/')) :]}" if beginning != path else f"{root}/*.parquet"
    address = base.split("://")[0] + "://" if "://" in base else ""
    options = "?" + base.partition("?")[2] if address and "?" in base else ""  # region, endpoint
    files = []
    for one in found:
        within = one.path[len(root) :].lstrip("/") or one.base_name
        hidden = any(part[:1] in (".", "_") for part in within.split("/"))
        if one.type == pa_fs.FileType.File and (one is info or (fnmatch.fnmatchcase(one.path, pattern) and not hidden)):
            files.append(_File(address + one.path + options, within, one.size, one.mtime_ns or 0))
    if not files:
        raise ValueError(f"dataset.path={path!r}: no Parquet file there; give a file, a folder or a pattern of them")
    return sorted(files, key=lambda file: file.path)
