"""oxford_pets: breeds and species by the names of files, both divisions, and what else lies among the images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from image_corpora import rows, splits, write

from mmray.datasets import Rejected, oxford_pets
from mmray.datasets.oxford_pets import Config, class_names, sources, split_report

CATS, DOGS = ("Bengal", "Maine_Coon"), ("beagle", "american_pit_bull_terrier", "pug")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five breeds of ten images, the lists of the official split (6 and 4 of each), and MATLAB files."""
    stems = [f"{breed}_{i}" for breed in CATS + DOGS for i in range(1, 11)]
    for seed, stem in enumerate(stems):
        write(tmp_path / "images" / f"{stem}.jpg", seed, "JPEG")
    (tmp_path / "images/Bengal_3.mat").write_bytes(b"MATLAB 5.0 MAT-file, and what follows")
    (tmp_path / "annotations").mkdir()
    for name, numbers in (("trainval", range(1, 7)), ("test", range(7, 11))):
        lines = [f"{stem} 1 1 1" for stem in stems if int(stem.rpartition("_")[2]) in numbers]
        (tmp_path / f"annotations/{name}.txt").write_text("# image class species breed\n" + "\n".join(lines) + "\n")
    return tmp_path


def config(path: Path, **values: Any) -> Config:
    return Config(**{"path": str(path), "image": {"size": 8}, **values})


def listed(config_: Config, reject: Any = pytest.fail) -> list[dict[str, Any]]:
    return rows(oxford_pets, config_, reject=reject)


def breed(id: str) -> str:
    return id.rpartition("_")[0]


def test_breeds(corpus: Path) -> None:
    names = ["american_pit_bull_terrier", "beagle", "Bengal", "Maine_Coon", "pug"]
    for path in (corpus, corpus / "images"):
        assert class_names(config(path)) == names
        found = listed(config(path))
        assert len(found) == 50
        assert all(row["labels"] == [names.index(breed(row["id"]))] for row in found)


def test_species(corpus: Path) -> None:
    assert class_names(config(corpus, target="species")) == ["cat", "dog"]
    for row in listed(config(corpus, target="species")):
        assert row["labels"] == [int(breed(row["id"]) in DOGS)]


def test_seventy_to_thirty(corpus: Path) -> None:
    found = splits(listed(config(corpus)))
    assert Counter((breed(id), split) for id, split in found.items()) == {
        (name, split): number for name in CATS + DOGS for split, number in (("train", 6), ("val", 1), ("test", 3))
    }
    paper = config(corpus, target="species", split={"fractions": {"train": 0.7, "test": 0.3}})
    assert Counter(splits(listed(paper)).values()) == {"train": 35, "test": 15}


def test_official_split(corpus: Path) -> None:
    write(corpus / "images/pug_77.jpg", 777, "JPEG")
    config_ = config(corpus, split={"by": "official"})
    found = splits(listed(config_))
    assert len(found) == 50
    for id, split in found.items():
        assert (split == "test") == (int(Path(id).stem.rpartition("_")[2]) >= 7)
    by_class = Counter((breed(id), split) for id, split in found.items())
    assert all(by_class[name, "val"] in (0, 1, 2) and by_class[name, "train"] >= 4 for name in CATS + DOGS)
    assert 3 <= Counter(found.values())["val"] <= 6  # a seventh of 30
    report = split_report(config_)
    assert "1 files are on neither list, such as pug_77.jpg" in report
    assert "1 MATLAB files beside the images were passed over" in report
    within = splits(listed(config(corpus / "images", split={"by": "official"})))
    assert within == found
    (corpus / "images/beagle_8.jpg").unlink()
    with pytest.raises(ValueError, match=r"test\.txt names 1 of 20 images that are not there, such as beagle_8"):
        sources(config_)
    (corpus / "annotations/test.txt").unlink()
    with pytest.raises(ValueError, match=r"'official' needs .*test\.txt; bring it"):
        sources(config_)


def test_what_else_is_among_the_images(corpus: Path) -> None:
    write(corpus / "images/Bengal_11.jpg", 801, "GIF")
    write(corpus / "images/beagle_11.mat", 802, "PNG")  # an image all the same
    (corpus / "images/beagle_12.jpg").write_bytes(b"MATLAB 5.0 MAT-file under the name of an image")
    (corpus / "images/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 9)
    (corpus / "images/pug_13.mat").write_bytes(b"")
    rejected: list[Rejected] = []
    found = listed(config(corpus), rejected.append)
    assert len(found) == 52
    assert {Path(bad.path).name: bad.reason.split(",")[0] for bad in rejected} == {
        "beagle_12.jpg": "not an image: MATLAB data",
        "Thumbs.db": "its name is not that of a breed and a number",
        "pug_13.mat": "the file is empty",
    }


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        sources(config(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no image there"):
        sources(config(tmp_path))


def test_real_pets(real_data: Path) -> None:
    config_ = config(real_data / "oxford_pets")
    assert len(class_names(config_)) == 37
    assert sum(name[0].isupper() for name in class_names(config_)) == 12
    assert len(listed(config_)) == 222
    assert "Abyssinian: 4 / 1 / 1" in split_report(config_) or "Abyssinian: 3 / 1 / 2" in split_report(config_)
