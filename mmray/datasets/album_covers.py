"""Album covers and their genres: 20,000 covers of 300 x 300 pixels, 1,000 for each of 20 genres.

Published as Parquet files on Hugging Face (see `image_parquet`), also about as a folder per genre (see `image_folder`):
`path` may be either. Genres may be spelled as in `GENRES` or with capitals, blanks and hyphens (`Hip-Hop`); a corpus
that has some of them only has only those classes. Covers carry label conflicts and duplicates: one cover may stand
under two genres (`conflicting_labels`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from mmray import lookup
from mmray.datasets import Reject, Source, _images, image_folder, image_parquet
from mmray.datasets._images import GROUP_KEY, LABEL_KEY, SUMMED, Listing, columns
from mmray.storage import at

__all__ = ["GROUP_KEY", "LABEL_KEY", "SUMMED", "Config", "class_names", "columns", "read", "sources", "split_report"]

GENRES = (
    "blues", "classical", "country", "deathmetal", "doommetal", "drumnbass", "electronic", "folk", "grime",
    "heavymetal", "hiphop", "jazz", "lofi", "pop", "psychedelicrock", "punk", "reggae", "rock", "soul", "techno",
)  # fmt: skip


class Config(_images.Config):
    """Where the covers are, how they are divided, and what is stored of them."""

    name: Literal["album_covers"] = "album_covers"
    path: str = Field(description="a folder with a folder per genre, or Parquet files: a file, a folder or a pattern")


def class_names(config: Config) -> list[str]:
    """`classes`, or the genres of the corpus, in the order of `GENRES`."""
    if config.classes is not None:
        return list(config.classes)
    module, own = _layout(config)
    return _in_order({genre(name) for name in module.class_names(own)})


def sources(config: Config) -> list[Source]:
    """Those of the layout. ValueError for a genre that is not among the 20, and as the layout has it."""
    found: list[Source] = _layout(config)[0].sources_of(config, _listing(config))
    return found


def split_report(config: Config) -> str:
    """How the division came out, and what are copies."""
    return _images.report(config, _listing(config))


def read(config: Config, source: Source, reject: Reject) -> Iterator[pa.RecordBatch]:
    """The rows of one source."""
    in_parquet = _images.entries(source)[0].row is not None
    rows: Iterator[pa.RecordBatch] = (
        image_parquet.read(_as(image_parquet, config), source, reject)
        if in_parquet
        else image_folder.read(config, source, reject)
    )
    return rows


def genre(name: str) -> str:
    """The name among `GENRES` that is meant; ValueError where it is none."""
    found = re.sub(r"[^a-z]", "", name.lower().replace("&", "n"))
    if found not in GENRES:
        raise ValueError(
            f"{name!r} is not a genre of album_covers: {lookup.suggest(found, list(GENRES))}; image_folder and "
            "image_parquet take any classes"
        )
    return found


def _listing(config: Config) -> Listing:
    module, own = _layout(config)
    listing: Listing = module.listing(own, genre)
    return listing if config.classes else replace(listing, class_names=tuple(_in_order(set(listing.class_names))))


def _in_order(genres: set[str]) -> list[str]:
    return [name for name in GENRES if name in genres]


def _layout(config: Config) -> tuple[ModuleType, _images.Config]:
    """The module that reads the corpus as it lies there, and its config."""
    path = at(config.path)
    in_parquet = (
        config.path.startswith("hf://") or path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet")))
    )
    module = image_parquet if in_parquet else image_folder
    return module, _as(module, config)


def _as(module: ModuleType, config: Config) -> Any:
    return module.Config(**config.model_dump(exclude={"name"}))
