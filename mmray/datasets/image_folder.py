"""Images of one class each: a folder with a folder per class, or a table of files.

    pets/cat/one.jpg                         dataset: {name: image_folder, path: pets}
    pets/dog/two.png

    pets/labels.csv                          dataset: {name: image_folder, path: pets/labels.csv,
    file,species,owner                                 columns: {path: file, label: species, group: owner}}
    images/17.jpg,cat,smith

    pets/train/cat/one.jpg                   dataset: {name: image_folder, path: pets, split: {by: official}}
    pets/test/dog/two.jpg

    new/17.jpg                               dataset: {name: image_folder, path: new, classes: [cat, dog]}

The last has no classes: its images are to be predicted, and `classes` are those of the model. Every file in a class's
folder is an image or is rejected: its content decides, never its name. Hidden files are passed over, and files beside
the folders of classes that are no images are only counted. See `_images` for copies and division.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mmray.datasets import Reject, Source, _images
from mmray.datasets._images import GROUP_KEY, LABEL_KEY, SPLIT_NAMES, SUMMED, Item, Listing, columns
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
from mmray.datasets._splits import SPLITS, SplitName
from mmray.features import image_hash, images
from mmray.storage import at

__all__ = ["GROUP_KEY", "LABEL_KEY", "SUMMED", "Config", "class_names", "columns", "read", "sources", "split_report"]

_FILES, _MB = 64, 16  # of one source, at most
_SNIFFED = 512  # bytes that tell whether a file is an image


class Config(_images.Config):
    """Where the images are, how they are divided, and what is stored of them."""

    name: Literal["image_folder"] = "image_folder"
    path: str = Field(description="a folder with a folder per class, a table (.csv, .tsv, .parquet), or an image")
    columns: Columns = Columns()


def class_names(config: Config) -> list[str]:
    """`classes`, or the classes of the corpus, sorted."""
    if config.classes is not None:  # known without the corpus; `sources` finds any other in it
        return list(config.classes)
    root = at(config.path)
    if root.is_dir():  # every part of a preparation asks for them: the files need not be listed
        return sorted({name for folder, _ in _roots(root) for name in _folders(folder)})
    return vocabulary(None, [file for file, _ in _files(config)[0]])


def sources(config: Config) -> list[Source]:
    """Some dozens of files each, of one split, shuffled. ValueError: see `listing` and `_images.planned`."""
    return sources_of(config, listing(config))


def split_report(config: Config) -> str:
    """How the division came out, what are copies, and what was passed over."""
    return _images.report(config, listing(config))


def listing(config: Config, spelled: Callable[[str], str] = str) -> Listing:
    """Every file of the corpus, its class as it is `spelled`.

    ValueError where a file is missing, has no class or one that is not in `classes`.
    """
    files, notes = _files(config)
    found = [replace(file, label=spelled(file.label) if file.label else None) for file, _ in files]
    check_names(found)
    names = tuple(vocabulary(config.classes, found))
    return listed(config, found, names, [split for _, split in files], notes)


def listed(
    config: _images.Config,
    files: Sequence[Listed],
    class_names: tuple[str, ...],
    splits: Sequence[SplitName | None],
    notes: Sequence[str] = (),
) -> Listing:
    """The listing of these files, compared with each other as `duplicates` says."""
    items = tuple(
        Item(file.id, str(file.path), file.path.stat().st_size, file.label, file.where, file.group, split)
        for file, split in zip(files, splits, strict=True)
    )
    numbers = {file.id: number for number, file in enumerate(files)}
    same = [] if config.duplicates == "ignore" else same_content(file for file in files if file.path.stat().st_size)
    return Listing(
        items,
        class_names,
        tuple(tuple(numbers[file.id] for file in copies) for copies in same),
        tuple(image_hash.hashes_of([file.path for file in files])) if config.duplicates == "perceptual" else (),
        tuple(notes),
    )


def sources_of(config: _images.Config, listing: Listing) -> list[Source]:
    """The sources of a listing of files. The seed shuffles each split, so that neighbours are of any class."""
    items = sorted(_images.planned(config, listing), key=lambda item: item.path)
    found: list[Source] = []
    for split in (*SPLITS, None):
        of_split = [item for item in items if item.split == split]
        order = np.random.default_rng(config.split.seed).permutation(len(of_split))
        for pending in _pieces([of_split[number] for number in order]):
            num_bytes = sum(item.num_bytes for item in pending)
            found.append(_images.source(pending, [item.path for item in pending], listing.class_names, num_bytes))
    return found


def _pieces(items: Sequence[Item]) -> Iterator[list[Item]]:
    pending: list[Item] = []
    num_bytes = 0
    for item in items:
        if pending and (len(pending) == _FILES or num_bytes + item.num_bytes > _MB << 20):
            yield pending
            pending, num_bytes = [], 0
        pending.append(item)
        num_bytes += item.num_bytes
    if pending:
        yield pending


def read(config: _images.Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source, a few megabytes at a time."""
    paths = (source.path, *source.companions)
    found = ((entry, path, _bytes_of(path)) for entry, path in zip(_images.entries(source), paths, strict=True))
    return _images.rows(config, found, reject)


def _bytes_of(path: str) -> bytes | ValueError:
    try:
        return at(path).read_bytes()
    except OSError as error:
        return ValueError(f"can't be read: {error.strerror}")


# ---- Where the files are


def _files(config: Config) -> tuple[list[tuple[Listed, SplitName | None]], list[str]]:
    """Every file with the split that its folder implies, sorted, and remarks."""
    path = at(config.path)
    notes: list[str] = []
    if path.is_dir():
        found, notes = _in_folder(config, path)
    elif not path.is_file():
        raise ValueError(
            f"dataset.path={config.path!r} does not exist; give a folder with a folder per class, or a table"
        )
    elif path.suffix.lower() in TABLES:
        found = [(file, None) for file in in_table(path, config.columns, label_required=config.classes is None)]
    else:
        found = [(Listed(path, path.name, "", None, str(path)), None)]
    return sorted(found, key=lambda file: str(file[0].path)), notes


def _in_folder(config: Config, root: Path) -> tuple[list[tuple[Listed, SplitName | None]], list[str]]:
    found: list[tuple[Listed, SplitName | None]] = []
    notes: list[str] = []
    for folder, split in _roots(root):
        files, more = _in_classes(config, folder)
        within = "" if folder == root else f"{folder.name}/"
        found += [(replace(file, id=within + file.id), split) for file in files]
        notes += more
    return found, notes


def _roots(root: Path) -> list[tuple[Path, SplitName | None]]:
    """The folders that hold the folders of classes: one a split, where that is what all of them are called."""
    names = _folders(root)
    if names and {name.lower() for name in names} <= SPLIT_NAMES.keys():
        return [(root / name, SPLIT_NAMES[name.lower()]) for name in names]
    return [(root, None)]


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if entry.name[0] != "." and entry.is_dir())


def _in_classes(config: Config, root: Path) -> tuple[list[Listed], list[str]]:
    found = in_folders(root, lambda name: True)
    labelled = [file for file in found if file.label is not None]
    if not labelled:
        return found, []  # images to predict, all of the files
    if empty := empty_folders(root, labelled):
        raise ValueError(
            f"dataset.path={config.path!r}: no file in {', '.join(empty)}; every folder there is a class: fill or "
            "remove it"
        )
    beside = [file for file in found if file.label is None]
    for file in beside:
        if _is_image(file.path):
            raise ValueError(f"{file.path} is an image beside the folders of classes; put it into one of them")
    names = ", ".join(file.path.name for file in beside[:5])
    return labelled, [f"{len(beside):,} files in {root} are no images: {names}"] if beside else []


def _is_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            images.identify(file.read(_SNIFFED))
    except ValueError:
        return False
    return True
