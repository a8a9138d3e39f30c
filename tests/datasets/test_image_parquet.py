"""image_parquet: Hugging Face's layout, labels of every kind, shards, stores, damage; album_covers in both layouts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_corpora import encoded, hugging_face, picture, rows, splits, write
from PIL import Image

from mmray.datasets import Rejected, album_covers, image_parquet
from mmray.datasets.image_parquet import Config, class_names, sources, split_report

NAMES = ["tench", "axolotl", "newt"]


def config(path: object, **values: Any) -> Config:
    return Config(**{"path": str(path), "image": {"size": 8}, **values})


def listed(config_: Config, reject: Any = pytest.fail) -> list[dict[str, Any]]:
    return rows(image_parquet, config_, reject=reject)


def some(count: int, first: int = 0, **extra: Any) -> list[dict[str, Any]]:
    return [{"image": encoded(picture(first + i)), "label": (first + i) % 3, **extra} for i in range(count)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """30 images in two shards, of small row groups, and 9 in a test file."""
    folder = tmp_path / "corpus"
    hugging_face(folder / "data/train-00000-of-00002.parquet", some(18), NAMES, row_group_size=4)
    hugging_face(folder / "data/train-00001-of-00002.parquet", some(12, 18), NAMES, row_group_size=5)
    hugging_face(folder / "data/test-00000-of-00001.parquet", some(9, 30), NAMES)
    return folder


@pytest.mark.parametrize("span_bytes", [32 << 20, 1000])
def test_rows_are_those_of_all_shards(corpus: Path, monkeypatch: pytest.MonkeyPatch, span_bytes: int) -> None:
    monkeypatch.setattr(image_parquet, "_SPAN_BYTES", span_bytes)
    config_ = config(corpus)
    assert class_names(config_) == NAMES
    assert (len(sources(config_)) <= 9) == (span_bytes > 1000)  # some of each split in each file
    found = {row["id"]: row for row in listed(config_)}
    assert len(found) == 39
    for stem, first, stop in (("train-00000", 0, 18), ("train-00001", 18, 30), ("test-00000", 30, 39)):
        for number in range(first, stop):
            of = {"train": 2, "test": 1}[stem[:-6]]
            row = found[f"data/{stem}-of-{of:05d}.parquet#{number - first}"]
            assert row["labels"] == [number % 3]
            expected = np.asarray(picture(number).resize((8, 8), Image.Resampling.BILINEAR))
            assert np.abs(row["image"].astype(int) - expected).max() <= 1
    assert Counter(row["split"] for row in found.values()) in (
        {"train": 31, "val": 4, "test": 4},
        {"train": 32, "val": 3, "test": 4},
    )


@pytest.mark.parametrize(
    ("path", "number"),
    [("data/train-00001-of-00002.parquet", 12), ("data/train-*.parquet", 30), ("*test*", 9), ("data", 39)],
)
def test_a_file_a_pattern_a_folder(corpus: Path, path: str, number: int) -> None:
    assert len(listed(config(corpus / path, split={"by": "none"}))) == number


def test_stores(corpus: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(corpus), "/store/", recursive=True)
    local = {row["id"]: row["image"].tobytes() for row in listed(config(corpus, split={"by": "none"}))}
    for address in (corpus.as_uri(), "memory://store/corpus", "memory://store/corpus/data/*.parquet"):
        config_ = config(address, split={"by": "none"})
        found = {row["id"]: row["image"].tobytes() for row in listed(config_)}
        assert sorted(found.values()) == sorted(local.values())
        assert all(source.path.startswith(address.split("://")[0] + "://") for source in sources(config_))
    before = [source.note for source in sources(config_)]
    data = corpus / "data/test-00000-of-00001.parquet"
    fsspec.filesystem("memory").put(str(data), "/store/corpus/data/another.parquet")
    assert [source.note for source in sources(config_)] != before
    with pytest.raises(ValueError, match="nosuch"):
        sources(config("nosuch://x/y"))


def test_a_changed_file_in_a_store_is_another_source(corpus: Path) -> None:
    config_ = config(corpus.as_uri(), split={"by": "none"})
    before = [source.note for source in sources(config_)]
    assert [source.note for source in sources(config_)] == before
    hugging_face(corpus / "data/test-00000-of-00001.parquet", some(9, 30), NAMES)  # newer, if nothing else
    assert [source.note for source in sources(config_)] != before


def test_official_split_is_told_by_names(corpus: Path, tmp_path: Path) -> None:
    found = splits(listed(config(corpus, split={"by": "official", "fractions": {"train": 0.8, "val": 0.2}})))
    assert {id for id, split in found.items() if split == "test"} == {id for id in found if "test-" in id}
    assert Counter(found.values()) == {"train": 24, "val": 6, "test": 9}
    for name in ("train/0000.parquet", "validation/0000.parquet", "test/0000.parquet"):
        hugging_face(tmp_path / "default" / name, some(3, 10 * len(name)), NAMES)
    found = splits(listed(config(tmp_path / "default", split={"by": "official"})))
    assert {id.split("/")[0]: split for id, split in found.items()} == {
        "train": "train",
        "validation": "val",
        "test": "test",
    }
    hugging_face(tmp_path / "default/more.parquet", some(3, 99), NAMES)
    with pytest.raises(ValueError, match=r"more\.parquet belongs to no split"):
        sources(config(tmp_path / "default", split={"by": "official"}))


# ---- Labels


def test_labels_may_be_text_or_numbers_alone(tmp_path: Path) -> None:
    text = [{**row, "label": NAMES[row["label"]]} for row in some(12)]
    hugging_face(tmp_path / "text.parquet", text, None)
    assert class_names(config(tmp_path / "text.parquet")) == sorted(NAMES)
    assert [row["labels"] for row in listed(config(tmp_path / "text.parquet", split={"by": "none"}))] == [
        [sorted(NAMES).index(row["label"])] for row in text
    ]
    hugging_face(tmp_path / "numbers.parquet", some(12), None)
    assert class_names(config(tmp_path / "numbers.parquet")) == ["0", "1", "2"]
    named = config(tmp_path / "numbers.parquet", classes=NAMES, split={"by": "none"})
    assert [row["labels"] for row in listed(named)] == [[i % 3] for i in range(12)]
    with pytest.raises(ValueError, match="labels are numbers in some files and text in others"):
        class_names(config(tmp_path))
    table = pq.read_table(tmp_path / "text.parquet")
    encoded_text = table.set_column(1, "label", table.column("label").dictionary_encode())
    pq.write_table(encoded_text, tmp_path / "dictionary.parquet")
    assert class_names(config(tmp_path / "dictionary.parquet")) == sorted(NAMES)


def test_classes_may_be_given(corpus: Path) -> None:
    found = listed(config(corpus, classes=["newt", "toad", "tench", "axolotl"], split={"by": "none"}))
    assert [row["labels"] for row in found[:3]] == [[2], [3], [0]]
    with pytest.raises(ValueError, match=r"images of class 'axolotl', which is not among\s+dataset.classes"):
        sources(config(corpus, classes=["newt", "tench"]))


def test_labels_that_can_not_be(tmp_path: Path) -> None:
    labels = [0, 1, 2, 7, None, -1, 0, 1, 2, 0, 1, 2]
    pairs = zip(some(12), labels, strict=True)
    hugging_face(tmp_path / "a.parquet", [{**row, "label": label} for row, label in pairs], NAMES)
    rejected: list[Rejected] = []
    found = listed(config(tmp_path), rejected.append)
    assert len(found) == 9
    assert {bad.record: bad.reason for bad in rejected} == {
        3: "label 7 is none of the 3 classes that the file's metadata names",
        4: "has no label",
        5: "has no label",
    }
    hugging_face(tmp_path / "b.parquet", some(3, 50), ["tench", "newt", "axolotl"])
    with pytest.raises(ValueError, match=r"a\.parquet names the classes .*, but .*b\.parquet .*; make them agree"):
        sources(config(tmp_path))
    floats = pa.table({"image": [b""], "label": [0.5]})
    pq.write_table(floats, tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column 'label' is double; expected whole numbers or text"):
        sources(config(tmp_path / "c.parquet"))


def test_images_to_predict(tmp_path: Path) -> None:
    hugging_face(tmp_path / "a.parquet", [{"image": row["image"]} for row in some(4)], None)
    with pytest.raises(ValueError, match=r"no column 'label', which dataset\.columns\.label names"):
        sources(config(tmp_path))
    hugging_face(tmp_path / "b.parquet", [{**row, "label": -1} for row in some(4, 10)], NAMES)
    for path in ("a.parquet", "b.parquet"):
        found = listed(config(tmp_path / path, classes=NAMES, split={"by": "none"}))
        assert [row["labels"] for row in found] == [[]] * 4


# ---- Copies and damage


def test_copies_and_conflicts(tmp_path: Path) -> None:
    twice = some(18)
    twice[9] = dict(twice[0])
    hugging_face(tmp_path / "train-0.parquet", twice, NAMES)
    hugging_face(tmp_path / "train-1.parquet", [*some(12, 30), twice[1]], NAMES)
    found = {row["id"]: row for row in listed(config(tmp_path))}
    groups = [{"train-0.parquet#0", "train-0.parquet#9"}, {"train-0.parquet#1", "train-1.parquet#12"}]
    for members in groups:
        assert {found[id]["group"] for id in members} == {min(members)}
        assert len({found[id]["split"] for id in members}) == 1
    assert sum(row["group"] != row["id"] for row in found.values()) == 2
    assert "4 images stand in 2 groups" in split_report(config(tmp_path))
    jpeg = encoded(picture(3, 200, 200), "JPEG", quality=80)
    other = {"image": jpeg, "label": 2}, {"image": encoded(picture(3, 200, 200), "JPEG", quality=90), "label": 1}
    hugging_face(tmp_path / "train-2.parquet", other, NAMES)
    assert len(listed(config(tmp_path))) == 33
    with pytest.raises(ValueError, match=r"train-2.parquet#0 \(newt\); train-2.parquet#1 \(axolotl\)"):
        sources(config(tmp_path, duplicates="perceptual"))


def test_damage(corpus: Path, tmp_path: Path) -> None:
    bad = [{"image": data, "label": 0} for data in (None, b"", b"text and no image", encoded(picture(1))[:90])]
    hugging_face(tmp_path / "bad/bad.parquet", [*some(9, 70), *bad], NAMES)
    rejected: list[Rejected] = []
    assert len(listed(config(tmp_path / "bad"), rejected.append)) == 9
    assert [bad.record for bad in sorted(rejected, key=lambda bad: bad.record or 0)] == [9, 10, 11, 12]
    reasons = {bad.record: bad.reason for bad in rejected}
    for row, reason in zip(range(9, 13), ("no bytes", "empty", "text", "truncated"), strict=True):
        assert reason in reasons[row]
    shard = corpus / "data/train-00001-of-00002.parquet"
    data = shard.read_bytes()
    for broken in (data[:-20], b"not Parquet at all", b""):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: not a Parquet file that can be read"):
            sources(config(corpus))
    with pytest.raises(
        ValueError, match=r"no column 'picture', which dataset\.columns\.image names; it has image, label"
    ):
        sources(config(tmp_path / "bad", columns={"image": "picture"}))
    with pytest.raises(ValueError, match="column 'label' is int64; expected bytes"):
        sources(config(tmp_path / "bad", columns={"image": "label"}))
    (tmp_path / "nothing").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "nowhere", tmp_path / "no*.parquet"):
        with pytest.raises(ValueError, match="no Parquet file there"):
            sources(config(path))


def test_plain_bytes_will_do(tmp_path: Path) -> None:
    made = some(6)
    table = pa.table({"image": pa.array([row["image"] for row in made], pa.large_binary()), "label": ["a", "b"] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(listed(config(tmp_path, split={"fractions": {"train": 0.5, "test": 0.5}}))) == 6


# ---- Album covers


def covers(path: Path, **values: Any) -> album_covers.Config:
    return album_covers.Config(**{"path": str(path), "image": {"size": 8}, **values})


def test_album_covers_in_both_layouts(tmp_path: Path) -> None:
    genres = {"Rock": "rock", "Hip-Hop": "hiphop", "Drum & Bass": "drumnbass"}
    made = []
    for label, folder in enumerate(genres):
        for i in range(10):
            path = write(tmp_path / "folders" / folder / f"{i}.jpg", 100 * label + i, "JPEG")
            made.append({"image": path.read_bytes(), "label": label})
    hugging_face(tmp_path / "parquet/data/train-0.parquet", made, list(genres.values()))
    names = ["drumnbass", "hiphop", "rock"]
    by_layout = []
    for path in (tmp_path / "folders", tmp_path / "parquet"):
        config_ = covers(path)
        assert album_covers.class_names(config_) == names
        found = rows(album_covers, config_)
        assert Counter(row["split"] for row in found) == {"train": 24, "val": 3, "test": 3}
        assert "  hiphop: 8 / 1 / 1" in album_covers.split_report(config_)
        by_layout.append({row["image"].tobytes(): row["labels"] for row in found})
    assert by_layout[0] == by_layout[1]
    given = rows(album_covers, covers(tmp_path / "folders", classes=["rock", "hiphop", "drumnbass", "jazz"]))
    assert {tuple(row["labels"]) for row in given} == {(0,), (1,), (2,)}
    write(tmp_path / "folders/Polka/1.jpg", 999)
    with pytest.raises(ValueError, match="'Polka' is not a genre of album_covers: "):
        album_covers.sources(covers(tmp_path / "folders"))


def test_real_covers(real_data: Path) -> None:
    config_ = covers(real_data / "album_covers")
    assert album_covers.class_names(config_) == ["country", "electronic", "hiphop", "pop", "rock"]
    assert len(rows(album_covers, config_, album_covers.sources(config_)[-1:])) == 60
    # One film's record stands under two genres, in two photographs.
    conflict = r"1 image under two classes:\n.*R-2632748.* \(electronic\); .*R-451426.* \(pop\)"
    with pytest.raises(ValueError, match=conflict):
        album_covers.sources(covers(real_data / "album_covers", duplicates="perceptual"))
