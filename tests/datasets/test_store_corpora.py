"""A corpus in a store is made and read as on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mmray import lookup
from mmray.datasets.synthetic import album_covers, mir1k, music_emotion, pets, youtube8m
from mmray.storage import at

MADE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "shards": (
        youtube8m,
        {"num_videos": 40, "num_classes": 5},
        {"name": "youtube8m", "level": "video", "num_classes": 5},
    ),
    "melodies": (mir1k, {"num_clips": 5, "min_clip_s": 1.0, "max_clip_s": 1.5}, {"name": "mir1k", "val_singers": []}),
    "sound": (
        music_emotion,
        {"num_tracks": 3, "minutes": 0.05},
        {"name": "audio_folder", "segment_s": 1.0, "split": {"by": "segment"}},
    ),
    "covers": (album_covers, {"num_images": 12, "num_classes": 3, "size": 32}, {"name": "album_covers"}),
    "covers in Parquet": (
        album_covers,
        {"num_images": 12, "num_classes": 3, "size": 32, "layout": "parquet"},
        {"name": "album_covers"},
    ),
    "pets": (pets, {"num_images": 12, "num_classes": 3, "size": 48}, {"name": "oxford_pets"}),
}


@pytest.mark.parametrize("kind", MADE)
def test_rows_are_those_of_this_machine(kind: str, tmp_path: Path) -> None:
    synthetic, made, read = MADE[kind]
    store = at("memory://corpora") / kind.replace(" ", "-")
    rows, places = [], []
    for root in (tmp_path / "corpus", store):
        summary = synthetic.generate(root, synthetic.Config(**made), lambda done, total: None)
        assert summary.num_bytes > 0
        dataset = lookup.load("dataset", read["name"])
        settings = dataset.Config(**{"path": str(root), **read})
        sources = dataset.sources(settings)
        places.append([str(at(source.path)).removeprefix(str(root)) for source in sources])
        rejected: list[Any] = []
        batches = [batch for source in sources for batch in dataset.read(settings, source, rejected.append)]
        assert not rejected
        rows.append(pa.Table.from_batches(batches))
    assert places[0] == places[1]
    assert rows[0].num_rows > 2
    assert rows[1].equals(rows[0])
