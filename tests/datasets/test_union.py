"""Several melody corpora as one: the rows of each as its own module gives them, under names that can't collide."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from mmray import config, preparation, prepared
from mmray.datasets import Rejected, Source, melody_folder, mir1k, union
from mmray.schema import arrow_schema

CFP = {"sample_rate_hz": 8000, "hop": 160, "window": 513, "resolution_hz": 8.0, "min_hz": 80.0, "bins_per_octave": 12}
SECONDS = 0.4


def write_clip(sound: Path, label: Path, seed: int) -> None:
    """Noise, and a label in MIDI pitches every 20 ms."""
    for path in (sound, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, (round(SECONDS * 8000), 2))
    soundfile.write(sound, samples, 8000, subtype="FLOAT")
    label.write_text("0\n" * 3 + f"{50 + seed}\n" * (round(SECONDS / 0.02) - 5))


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """`karaoke`, laid out as MIR-1K, and `songs`, a folder with splits; clips of both have the same names."""
    for number, name in enumerate(("ada_1_01", "amy_1_01", "bea_2_01", "leon_1_01")):
        folder = tmp_path / "karaoke"
        write_clip(folder / f"Wavfile/{name}.wav", folder / f"PitchLabel/{name}.pv", number)
    for number, name in enumerate(("train/ada_1_01", "train/cy", "val/di", "test/ed")):
        write_clip(tmp_path / f"songs/{name}.wav", tmp_path / f"songs/{name}.pv", 10 + number)
    return tmp_path


def karaoke(corpora: Path, **settings: Any) -> dict[str, Any]:
    return {"name": "mir1k", "path": str(corpora / "karaoke"), "val_singers": ["amy"], "cfp": CFP, **settings}


def songs(corpora: Path, folder: str = "songs", **settings: Any) -> dict[str, Any]:
    return {"name": "melody_folder", "path": str(corpora / folder), "cfp": CFP, **settings}


def make(*sections: dict[str, Any]) -> union.Config:
    return union.Config(corpora=sections)


def rows(module: Any, section: Any, source: Source) -> list[dict[str, Any]]:
    batches = list(module.read(section, source, pytest.fail))
    assert all(batch.schema.equals(arrow_schema(module.columns(section))) for batch in batches)
    found: list[dict[str, Any]] = pa.Table.from_batches(batches).to_pylist()
    return found


def test_sources_are_those_of_each_corpus(corpora: Path) -> None:
    first, second = mir1k.Config(**karaoke(corpora)), melody_folder.Config(**songs(corpora))
    joined = make(karaoke(corpora), songs(corpora))
    without_notes = [replace(source, note="") for source in union.sources(joined)]
    assert without_notes == mir1k.sources(first) + melody_folder.sources(second)
    assert [source.split for source in union.sources(joined)].count("train") == 4
    assert union.columns(joined) == mir1k.columns(first)
    assert union.class_names(joined) == []


def test_rows_are_those_of_each_corpus_under_its_name(corpora: Path) -> None:
    parts = [
        (mir1k, mir1k.Config(**karaoke(corpora))),
        (melody_folder, melody_folder.Config(**songs(corpora, mix="right"))),
    ]
    joined = make(karaoke(corpora), songs(corpora, mix="right"))
    found = [row for source in union.sources(joined) for row in rows(union, joined, source)]
    own = [
        row | {key: f"{section.name}/{row[key]}" for key in ("id", "group")}
        for module, section in parts
        for source in module.sources(section)
        for row in rows(module, section, source)
    ]
    assert found == own
    ids = [row["id"] for row in found]
    assert {"mir1k/ada_1_01", "melody_folder/train/ada_1_01", "mir1k/leon_1_01"} < set(ids)
    assert len(set(ids)) == len(ids) == 8
    assert {row["group"] for row in found} >= {"mir1k/ada", "melody_folder/ada_1_01"}


def test_two_corpora_of_one_kind_are_numbered(corpora: Path) -> None:
    shutil.copytree(corpora / "songs", corpora / "more")
    joined = make(songs(corpora), karaoke(corpora), songs(corpora, "more"))
    ids = [row["id"] for source in union.sources(joined) for row in rows(union, joined, source)]
    assert len(set(ids)) == len(ids) == 12
    assert [name.split("/")[0] for name in ids] == ["melody_folder-1"] * 4 + ["mir1k"] * 4 + ["melody_folder-3"] * 4


def test_a_file_is_read_by_the_corpus_that_it_lies_in(corpora: Path) -> None:
    """Also where one corpus lies within the folder of another, and where two corpora share one."""
    shutil.move(corpora / "songs", corpora / "karaoke" / "songs")
    joined = make(karaoke(corpora), songs(corpora, "karaoke/songs", mix="left"))
    names = [row["id"] for source in union.sources(joined) for row in rows(union, joined, source)]
    assert sorted(name.split("/")[0] for name in names) == ["melody_folder"] * 4 + ["mir1k"] * 4


def test_a_file_of_two_corpora_is_named(corpora: Path) -> None:
    joined = make(karaoke(corpora), songs(corpora, "karaoke", labels="optional"))
    with pytest.raises(ValueError, match=r"ada_1_01\.wav belongs to more than one of dataset\.corpora"):
        union.sources(joined)


def test_a_clip_that_can_t_be_used_is_rejected_by_its_own_corpus(corpora: Path) -> None:
    bad = corpora / "songs" / "val" / "di.wav"
    bad.write_bytes(b"no sound")
    joined = make(karaoke(corpora), songs(corpora))
    rejected: list[Rejected] = []
    (source,) = [source for source in union.sources(joined) if source.path == str(bad)]
    assert list(union.read(joined, source, rejected.append)) == []
    assert [bad.path for bad in rejected] == [str(bad)]


def test_prepared_splits_are_those_of_the_corpora(corpora: Path) -> None:
    run = run_over(corpora, karaoke(corpora), songs(corpora))
    plan = preparation.plan(run)
    info = preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    found = {}
    for name, split in info.splits.items():
        reader = prepared.SplitReader(plan.folder, split, ("id",))
        found[name] = sorted(reader.take(np.arange(split.rows)).column("id").to_pylist())
        assert split.labelled_rows == split.rows
    assert found == {
        "train": ["melody_folder/train/ada_1_01", "melody_folder/train/cy", "mir1k/ada_1_01", "mir1k/bea_2_01"],
        "val": ["melody_folder/val/di", "mir1k/amy_1_01"],
        "test": ["melody_folder/test/ed", "mir1k/leon_1_01"],
    }


def test_clips_made_for_training_keep_to_the_split_of_their_corpus(corpora: Path) -> None:
    remixed = karaoke(corpora, remix={"copies": 1, "swap": True})
    split = {"by": "hash"}
    preparation.plan(run_over(corpora, songs(corpora), karaoke(corpora), split=split))
    preparation.plan(run_over(corpora, songs(corpora), remixed))
    with pytest.raises(ValueError, match=r"prepare\.split\.by='hash': dataset\.remix\.copies are made of training"):
        preparation.plan(run_over(corpora, songs(corpora), remixed, split=split))


def run_over(corpora: Path, *sections: dict[str, Any], split: dict[str, Any] | None = None) -> config.Run:
    return config.from_dict(
        {
            "name": "joined",
            "task": "melody_extraction",
            "dataset": {"name": "union", "corpora": list(sections)},
            "model": "dense_aspp",
            "prepare": {"out": str(corpora / "prepared"), "split": split or {}},
        }
    )


def test_config_is_read_back_and_tells_what_the_corpora_share(corpora: Path) -> None:
    run = run_over(corpora, karaoke(corpora, mix="sum"), songs(corpora))
    again = config.from_dict(run.to_dict())
    assert again.dataset == run.dataset
    assert isinstance(again.dataset, union.Config)
    assert isinstance(again.dataset.corpora[0], mir1k.Config)
    assert again.dataset.corpora[0].val_singers == ("amy",)
    assert again.dataset.cfp.bins_per_octave == 12
    assert again.dataset.mix == "sum"
    assert again.dataset.path == f"{corpora / 'karaoke'}, {corpora / 'songs'}"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([], "at least 1 item"),
        ({"name": "mir1k", "path": "a"}, "expected a list of dataset sections"),
        ([{"path": "a"}], "each corpus needs a name and a path"),
        (["mir1k"], "each corpus needs a name and a path"),
        ([{"name": "mir1"}], "'mir1' is not a dataset; did you mean 'mir1k'?"),
        ([{"name": "mir1k"}], "corpus 'mir1k': 1 wrong value(s)\n  path: missing"),
        ([{"name": "mir1k", "path": "a", "labls": 1}], "labls: unknown key; did you mean 'labels'?"),
        (
            [{"name": "youtube8m", "path": "a", "level": "video", "num_classes": 3}],
            "'youtube8m' can't be joined: only melody corpora",
        ),
        (
            [{"name": "mir1k", "path": "a"}, {"name": "union", "corpora": [{"name": "ikala", "path": "b"}]}],
            "a union can't stand within a union",
        ),
        # As many bins, but at other times: nothing would show that but the scores.
        (
            [{"name": "mir1k", "path": "a"}, {"name": "ikala", "path": "b", "cfp": {"hop": 160}}],
            "'ikala' has another cfp than 'mir1k'",
        ),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_wrong_sections_are_named(sections: Any, words: str) -> None:
    values = {"task": "melody_extraction", "model": "dense_aspp", "dataset": {"name": "union", "corpora": sections}}
    with pytest.raises(ValueError, match=r"(?s)^run: 1 wrong value") as caught:
        config.from_dict({"name": "joined", **values})
    assert words in str(caught.value)
