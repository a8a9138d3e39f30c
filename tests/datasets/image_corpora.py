"""Small image corpora for the tests of several dataset modules."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmray.datasets import Source
from mmray.schema import arrow_schema


def picture(seed: int, height: int = 20, width: int = 30) -> Image.Image:
    """Noise of one seed, whose 5 x 5 coarse blobs make it another to a perceptual hash, too."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def write(path: Path, seed: int, form: str = "PNG", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed, **options), form))
    return path


def hugging_face(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None, **options: Any) -> Path:
    """Write rows {image: bytes or None, label} as the datasets library does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": row["image"], "path": "x.jpg"} for row in rows], struct)
    columns = {"image": image}
    if all("label" in row for row in rows):
        columns["label"] = pa.array([row["label"] for row in rows])
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, **options)
    return path


def rows(
    module: ModuleType, config: Any, found: list[Source] | None = None, reject: Any = pytest.fail
) -> list[dict[str, Any]]:
    """The rows of all sources, with the split of each and its image as an array (H, W, 3)."""
    listed = []
    for source in module.sources(config) if found is None else found:
        for batch in module.read(config, source, reject):
            assert batch.schema.equals(arrow_schema(module.columns(config)))
            batch.validate(full=True)
            listed += [{**row, "split": source.split} for row in batch.to_pylist()]
    for row in listed:
        if config.image.store == "uint8":
            row["image"] = np.frombuffer(row["image"], np.uint8).reshape(*config.image.size, 3)
    return listed


def splits(found: list[dict[str, Any]]) -> dict[str, str]:
    """The split of each row by its id; each id is there once."""
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row["split"] for row in found}
