"""What the image corpora share: one row an image of one class; copies of an image kept together; division; reading.

A module lists its images (`Listing`), this one decides group and split of each (`planned`), and later makes rows of
their bytes (`rows`). Images that hold the same bytes, or, with `duplicates: perceptual`, nearly the same picture, are
one group and stand in one split. Where such images have different classes at least one of them is wrong:
`conflicting_labels` says what then.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from mmray.config import Fraction, Section
from mmray.datasets import Reject, Rejected, Source
from mmray.datasets._splits import SPLITS, Shares, SplitName, split_groups
from mmray.features import image_hash, images
from mmray.schema import Column, arrow_schema

GROUP_KEY = "group"
LABEL_KEY = "labels"
SUMMED = ("channel_mean", "channel_mean_square")

SPLIT_NAMES: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_BATCH_MB = 16
_NAMED = 5  # images or classes that a message names


class Split(Shares):
    """How images are divided. `none` leaves it to `prepare.split`."""

    by: Literal["stratified", "official", "none"] = Field(
        "stratified",
        description="official: as the corpus says; where it has no val, its train gives some, by the fractions",
    )
    fractions: dict[SplitName, Fraction] = Field({"train": 0.8, "val": 0.1, "test": 0.1})


class Config(Section):
    """Where the images are, how they are divided, and what is stored of them."""

    path: str
    image: images.Settings = images.Settings()
    split: Split = Split()
    classes: tuple[str, ...] | None = Field(None, description="all classes in order; default: those of the corpus")
    duplicates: Literal["exact", "perceptual", "ignore"] = Field(
        "exact", description="what counts as one image: equal bytes, nearly equal pictures, or nothing"
    )
    near_bits: int = Field(6, ge=0, le=10, description="perceptual: so many of the hash's 64 bits may differ")
    conflicting_labels: Literal["fail", "drop", "keep"] = Field(
        "fail",
        description="one image under two classes; drop: neither is used, both are listed as rejected, which takes "
        "prepare.on_bad_input: skip",
    )

    @model_validator(mode="after")
    def _classes_differ(self) -> Self:
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={list(self.classes)}: a class stands twice; name each once")
        return self

    @property
    def why_corpus_split(self) -> str | None:
        """Why only the division that `split` says will do, where that is so."""
        if self.split.by == "official":
            return "dataset.split.by: official keeps to the corpus's own division"
        return None


@dataclass(frozen=True)
class Item:
    """One image as its corpus lists it, and then with its place.

    `where` says what gives its label, for errors. `group` is what the corpus says that it belongs to ("": nothing),
    `split` where the corpus puts it. In a file of many images, `row` counts them and `span` the pieces that are read
    together. `why_not`: why it can't be a row.
    """

    id: str
    path: str
    num_bytes: int
    label: str | None
    where: str
    group: str = ""
    split: SplitName | None = None
    row: int | None = None
    span: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class Listing:
    """A corpus: its images, its classes, which images hold the same bytes (by number), and what else is to be said."""

    items: tuple[Item, ...]
    class_names: tuple[str, ...]
    same: tuple[tuple[int, ...], ...] = ()
    hashes: tuple[int | None, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What a source's note says of one image."""

    id: str
    group: str
    label: int | None
    row: int | None
    why_not: str


def columns(config: Config) -> list[Column]:
    """Name, group, class, the image as it is stored, and the means and mean squares of its channels."""
    return [
        Column(name="id", dtype="string"),
        Column(name=GROUP_KEY, dtype="string"),
        Column(name=LABEL_KEY, dtype="int32", shape=(None,)),
        images.column(config.image),
        *(Column(name=name, dtype="float32", shape=(3,), unit="of pixels from 0 to 1") for name in SUMMED),
    ]


# ---- Which images there are, in which group and split


def planned(config: Config, listing: Listing) -> list[Item]:
    """The images with their groups and splits; those that give no row have a reason. ValueError where that can't be."""
    items = list(listing.items)
    _check_labels(config, items)
    copies = _connected(len(items), [*listing.same, *_near(config, listing.hashes)])
    items = _settled(config, items, copies)
    by_group: dict[str, list[int]] = defaultdict(list)
    for number, item in enumerate(items):
        if item.group:
            by_group[item.group].append(number)
    for members in _connected(len(items), [*copies, *by_group.values()]):
        group = min(items[number].group or items[number].id for number in members)
        for number in members:
            items[number] = replace(items[number], group=group)
    items = [item if item.group else replace(item, group=item.id) for item in items]
    splits = _divided(config, items)
    return [replace(item, split=split) for item, split in zip(items, splits, strict=True)]


def _check_labels(config: Config, items: Sequence[Item]) -> None:
    where = f"dataset.path={config.path!r}"
    usable = [item for item in items if not item.why_not]
    if not usable:
        reasons = "; ".join(f"{item.path}: {item.why_not}" for item in items[:_NAMED])
        raise ValueError(f"{where}: no image there{': ' if reasons else ''}{reasons}")
    unlabelled = [item for item in usable if item.label is None]
    if unlabelled and len(unlabelled) < len(usable):
        raise ValueError(
            f"{where}: {len(unlabelled):,} of {len(usable):,} images have no class; the first is {unlabelled[0].path} "
            f"({unlabelled[0].where}); give its class, or remove it"
        )
    if unlabelled and config.classes is None:
        raise ValueError(
            f"{where}: no image has a class; put them into a folder per class, or name the classes of the model that "
            "is to predict them: dataset.classes"
        )
    labels = {item.label for item in usable}
    if len(labels) == 1 and config.classes is None:
        raise ValueError(
            f"{where}: all {len(usable):,} images are of class {usable[0].label!r} ({usable[0].where}); nothing can be "
            "learnt from one class: give a folder with a folder per class, or name all classes: dataset.classes"
        )


def _near(config: Config, hashes: Sequence[int | None]) -> list[tuple[int, ...]]:
    having = [number for number, word in enumerate(hashes) if word is not None]
    words = np.array([hashes[number] for number in having], np.uint64)
    return [(having[one], having[other]) for one, other in image_hash.near_pairs(words, config.near_bits)]


def _connected(num: int, groups: Iterable[Sequence[int]]) -> list[list[int]]:
    """Numbers below `num` that hang together through groups, in lists of two or more, ascending."""
    leader = list(range(num))

    def find(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    touched: set[int] = set()
    for members in groups:
        touched.update(members)
        for number in members[1:]:
            low, high = sorted((find(members[0]), find(number)))
            leader[high] = low
    found: dict[int, list[int]] = defaultdict(list)
    for number in sorted(touched):
        found[find(number)].append(number)
    return [members for members in found.values() if len(members) > 1]


def _settled(config: Config, items: list[Item], copies: Sequence[Sequence[int]]) -> list[Item]:
    """The items, those under two classes dealt with as `conflicting_labels` says."""
    conflicts = [c for c in copies if len({items[n].label for n in c if not items[n].why_not} - {None}) > 1]
    if not conflicts or config.conflicting_labels == "keep":
        return items
    where, several = f"dataset.path={config.path!r}", "s" * (len(conflicts) != 1)
    told = ["; ".join(f"{items[n].id} ({items[n].label})" for n in members) for members in conflicts]
    if config.conflicting_labels == "fail":
        listed = "".join(f"\n  {line}" for line in told[:_NAMED])
        more = f"\n  and {len(told) - _NAMED:,} more" if len(told) > _NAMED else ""
        raise ValueError(
            f"{where}: {len(told):,} image{several} under two classes:{listed}{more}"
            "\nremove the wrong copies, or set dataset.conflicting_labels: drop (none of them is used) or keep"
        )
    settled = list(items)
    for members, line in zip(conflicts, told, strict=True):
        for number in members:
            settled[number] = replace(items[number], why_not=f"one image under two classes: {line}")
    return settled


def _divided(config: Config, items: Sequence[Item]) -> list[SplitName | None]:
    """The split of every image; None for all of them where there is none."""
    if config.split.by == "none":
        return [None] * len(items)
    if config.split.by == "official":
        return _official(config, items)
    return list(_stratified(config, items, config.split.shares))


def _official(config: Config, items: Sequence[Item]) -> list[SplitName | None]:
    astray = [item for item in items if item.split is None and not item.why_not]
    if astray:
        raise ValueError(
            f"dataset.split.by='official', but {astray[0].path} belongs to no split by its name or folder; set "
            "dataset.split.by: stratified"
        )
    splits: list[SplitName | None] = [item.split or "train" for item in items]
    shares: dict[SplitName, float] = {n: share for n, share in config.split.shares.items() if n != "test"}
    if "val" in splits or "val" not in shares:
        return splits
    train = [number for number, split in enumerate(splits) if split == "train"]
    shares = {name: share / sum(shares.values()) for name, share in shares.items()}
    for number, split in zip(train, _stratified(config, [items[n] for n in train], shares), strict=True):
        splits[number] = split
    return splits


def _stratified(config: Config, items: Sequence[Item], shares: Mapping[SplitName, float]) -> list[SplitName]:
    """What gives no row goes to the first split, to be listed there."""
    amounts: dict[str, dict[str | None, float]] = defaultdict(lambda: defaultdict(float))
    for item in items:
        if not item.why_not:
            amounts[item.group][item.label] += 1
    try:
        by_group = split_groups(amounts, shares, config.split.seed)
    except ValueError as error:
        raise ValueError(f"dataset.path={config.path!r}: {error}") from None
    first = next(iter(shares))
    return [by_group[item.group] if not item.why_not else first for item in items]


def report(config: Config, listing: Listing) -> str:
    """How the division came out: each class's shares, copies, and what of one split is in another, too."""
    items = planned(config, listing)
    if config.split.by == "none":
        return "\n".join(["split by none: prepare.split divides the images", *_remarks(items, listing)])
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        if not item.why_not:
            counts[item.label or "(unlabelled)"][item.split or ""] += 1
    names = [name for name in SPLITS if any(of_class[name] for of_class in counts.values())]
    totals = [sum(of_class[name] for of_class in counts.values()) for name in names]
    lines = [
        f"split by {config.split.by} (seed {config.split.seed}), {' / '.join(names)}: "
        f"{' / '.join(f'{total:,}' for total in totals)} images",
        *(
            f"  {label}: {' / '.join(f'{of_class[name]:,}' for name in names)}"
            for label, of_class in sorted(counts.items())
        ),
    ]
    return "\n".join(lines + _remarks(items, listing))


def _remarks(items: Sequence[Item], listing: Listing) -> list[str]:
    lines = [f"  {note}" for note in listing.notes]
    usable = [item for item in items if not item.why_not]
    sizes = Counter(item.group for item in usable)
    if groups := [size for size in sizes.values() if size > 1]:
        lines.append(f"  {sum(groups):,} images stand in {len(groups):,} groups with copies of them or their like")
    if len(usable) < len(items):
        lines.append(f"  {len(items) - len(usable):,} images are not used; the reasons are among the rejected")
    seen = {item.group for item in usable if item.split in ("train", "val")}
    leaked = [item for item in usable if item.split == "test" and item.group in seen]
    if leaked:
        lines.append(
            f"  this split leaks: {len(leaked):,} test images, such as {leaked[0].id}, have a copy in train or val; "
            "scores flatter (split.by: stratified does not leak)"
        )
    return lines


# ---- Sources and rows


def source(
    items: Sequence[Item], paths: Sequence[str], labels: Sequence[str], num_bytes: int, version: str = ""
) -> Source:
    """One source of these images, all of one split, in this order, and of the files that hold them.

    `version` tells states of these files apart where they are not on this machine.
    """
    numbers = {name: number for number, name in enumerate(labels)}
    entries = [Entry(i.id, i.group, None if i.label is None else numbers.get(i.label), i.row, i.why_not) for i in items]
    note = json.dumps([version, [list(vars(entry).values()) for entry in entries]], separators=(",", ":"))
    return Source(paths[0], items[0].split, num_bytes, companions=tuple(paths[1:]), note=note)


def entries(source: Source) -> list[Entry]:
    """What a source's note says of its images."""
    return [Entry(*values) for values in json.loads(source.note)[1]]


def rows(
    config: Config, found: Iterable[tuple[Entry, str, bytes | ValueError]], reject: Reject
) -> Iterator[pa.RecordBatch]:
    """Rows of images, given what is known of each, its file, and its bytes or why there are none."""
    height, width = config.image.size
    batch_size = max(1, min(64, (_BATCH_MB << 20) // (3 * height * width)))
    known: list[Entry] = []
    stored, ends = bytearray(), [0]  # images one after another, as Arrow has them
    for entry, path, data in found:
        try:
            if entry.why_not:
                raise ValueError(entry.why_not)
            if isinstance(data, ValueError):
                raise data
            image = images.read(data, config.image)
        except ValueError as error:
            reject(Rejected(path, str(error), record=entry.row))
            continue
        known.append(entry)
        stored += images.encode(image, config.image)
        ends.append(len(stored))
        if len(known) == batch_size:
            yield _batch(config, known, stored, ends)
            known, stored, ends = [], bytearray(), [0]
    if known:
        yield _batch(config, known, stored, ends)


def _batch(config: Config, known: Sequence[Entry], stored: bytearray, ends: Sequence[int]) -> pa.RecordBatch:
    """Rows of the images that end at `ends` of `stored`, without another copy of them."""
    schema = arrow_schema(columns(config))
    # One after another, not each when it is decoded: the processor then has the code at hand, and takes half the time.
    seen = (images.decode_stored(memoryview(stored)[a:b], config.image) for a, b in pairwise(ends))
    means, mean_squares = zip(*map(images.channel_means, seen), strict=True)
    offsets = pa.py_buffer(np.array(ends, np.int64))
    arrays = [
        pa.array([entry.id for entry in known]),
        pa.array([entry.group for entry in known]),
        pa.array([[] if entry.label is None else [entry.label] for entry in known], schema.field(LABEL_KEY).type),
        pa.Array.from_buffers(pa.large_binary(), len(known), [None, offsets, pa.py_buffer(stored)]),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(means)),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(mean_squares)),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
