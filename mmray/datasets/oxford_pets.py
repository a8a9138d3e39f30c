"""Oxford-IIIT Pet: some 7,400 images of 37 breeds of cats and dogs, told by the names of the files.

    images/Abyssinian_12.jpg     annotations/trainval.txt     dataset: {name: oxford_pets, path: oxford_pets}
    images/beagle_7.jpg          annotations/test.txt

`Breed_Name_12.jpg`: the breed is what stands before the number, and a capital says that it is a cat. `path` may also be
the folder of images itself. `target: species` tells cats from dogs, `breed` the 37.

Splits: `stratified` by the class, 70 % and 30 % as published, the 70 % with some for validation; `official` by the
lists of annotations/, of which trainval gives train and val by their fractions, and images on neither list are left
out. The folder of images also holds MATLAB files, which are known companions: counted by `split_report`, and not
rejected. All else that is no image, whatever its name, is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import Field

from mmray.config import Fraction
from mmray.datasets import Reject, Source, _images, image_folder
from mmray.datasets._images import GROUP_KEY, LABEL_KEY, SUMMED, Listing, columns
from mmray.datasets._listing import Listed, check_names, in_folders, vocabulary
from mmray.datasets._splits import SplitName
from mmray.storage import at

__all__ = ["GROUP_KEY", "LABEL_KEY", "SUMMED", "Config", "class_names", "columns", "read", "sources", "split_report"]

SPECIES = ("cat", "dog")
_NAME = re.compile(r"(?P<breed>[A-Za-z]\w*)_\d+")
_LISTS: dict[str, SplitName] = {"trainval": "train", "test": "test"}


class Split(_images.Split):
    """How images are divided. `none` leaves it to `prepare.split`."""

    fractions: dict[SplitName, Fraction] = Field({"train": 0.6, "val": 0.1, "test": 0.3})


class Config(_images.Config):
    """Where the images are, what is told apart, how they are divided, and what is stored of them."""

    name: Literal["oxford_pets"] = "oxford_pets"
    path: str = Field(description="the folder that holds images/ and annotations/, or the folder of images itself")
    target: Literal["species", "breed"] = Field("breed", description="2 or 37 classes")
    split: Split = Split()


def class_names(config: Config) -> list[str]:
    """cat and dog; or `classes`, or the breeds of the corpus, in the alphabet's order."""
    if config.classes is not None:
        return list(config.classes)
    if config.target == "species":
        return list(SPECIES)
    return sorted(vocabulary(None, _files(config)[0]), key=str.lower)


def sources(config: Config) -> list[Source]:
    """Some dozens of files each, of one split, shuffled. ValueError: no image, and as `_images.planned` has it."""
    return image_folder.sources_of(config, _listing(config))


def split_report(config: Config) -> str:
    """How the division came out, what are copies, and what was passed over."""
    return _images.report(config, _listing(config))


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source."""
    return image_folder.read(config, source, reject)


def _listing(config: Config) -> Listing:
    files, notes = _files(config)
    splits: list[SplitName | None] = [None] * len(files)
    if config.split.by == "official":
        official = _official(at(config.path), {Path(file.id).stem for file in files})
        beside = [file for file in files if Path(file.id).stem not in official]
        if beside:
            notes.append(f"{len(beside):,} files are on neither list, such as {beside[0].id}; they are left out")
        files = [file for file in files if Path(file.id).stem in official]
        splits = [official[Path(file.id).stem] for file in files]
    vocabulary(config.classes, files)  # none may be of another class
    listing = image_folder.listed(config, files, tuple(class_names(config)), splits, notes)
    why_not = "its name is not that of a breed and a number, such as Maine_Coon_12.jpg"
    items = tuple(i if i.label is not None else replace(i, why_not=why_not) for i in listing.items)
    return replace(listing, items=items)


def _files(config: Config) -> tuple[list[Listed], list[str]]:
    """Every file that should be an image, sorted, and remarks on others."""
    root = at(config.path)
    root = root / "images" if (root / "images").is_dir() else root
    if not root.is_dir():
        raise ValueError(f"dataset.path={config.path!r} is no folder; give the one that holds images/ and annotations/")
    found = in_folders(root, lambda name: True)
    check_names(found)
    companions = {file.id for file in found if file.path.suffix == ".mat" and _is_matlab(file.path)}
    files = [
        Listed(file.path, file.id, "", _class(config, file.path.name), f"{config.target} by the name of the file")
        for file in sorted(found, key=lambda file: str(file.path))
        if file.id not in companions
    ]
    return files, [f"{len(companions):,} MATLAB files beside the images were passed over"] if companions else []


def _is_matlab(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6) == b"MATLAB"


def _class(config: Config, name: str) -> str | None:
    """The class that the name of a file tells; None where it is of another kind."""
    found = _NAME.fullmatch(Path(name).stem)
    if found is None:
        return None
    if config.target == "breed":
        return found["breed"]
    return SPECIES[0] if found["breed"][0].isupper() else SPECIES[1]


def _official(path: Path, there: set[str]) -> dict[str, SplitName]:
    """The split of every image on the lists, by its name without a suffix."""
    root = path if (path / "annotations").is_dir() else path.parent
    splits: dict[str, SplitName] = {}
    for name, split in _LISTS.items():
        listed = root / "annotations" / f"{name}.txt"
        if not listed.is_file():
            raise ValueError(f"dataset.split.by='official' needs {listed}; bring it, or set split.by: stratified")
        lines = (line.split() for line in listed.read_text(encoding="utf-8").splitlines())
        stems = [words[0] for words in lines if words and words[0][0] != "#"]
        if missing := [stem for stem in stems if stem not in there]:
            raise ValueError(
                f"{listed} names {len(missing):,} of {len(stems):,} images that are not there, such as {missing[0]}; "
                "bring them, or set dataset.split.by: stratified"
            )
        if twice := [stem for stem in stems if stem in splits]:
            raise ValueError(f"{listed}: {twice[0]} is on both lists; remove it from one of them")
        splits.update(dict.fromkeys(stems, split))
    return splits
