"""The made-up images: their layouts, their determinism, and that the real corpora's readers take them as they are."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_corpora import rows
from PIL import Image

from mmray.datasets import album_covers as real_covers
from mmray.datasets import oxford_pets
from mmray.datasets.synthetic import album_covers, pets
from mmray.datasets.synthetic._cover_styles import GENRES, MOTIFS, PALETTES
from mmray.datasets.synthetic._drawing import _LETTERS, Canvas, clouds, grain, squares
from mmray.datasets.synthetic._pet_breeds import BREEDS, COATS, EYES, HEADS, MUZZLES
from mmray.features import image_hash

COVERS = album_covers.Config(num_images=65, num_classes=4, size=48, seed=3)
PETS = pets.Config(num_images=111, size=64)


def generate(module: ModuleType, out: Path, config: Any, **options: int) -> Path:
    module.generate(out, config, lambda done, total: None, **options)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def covers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(album_covers, tmp_path_factory.mktemp("covers"), COVERS)


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(pets, tmp_path_factory.mktemp("pets"), PETS)


def test_covers_in_folders(covers: Path) -> None:
    files = contents(covers)
    assert files.pop("synthetic.json")
    genres = ["blues", "classical", "country", "deathmetal"]
    assert Counter(name.split("/")[0] for name in files) == dict(zip(genres, (17, 16, 16, 16), strict=True))
    assert "blues/blues_00017.jpg" in files
    for data in files.values():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))
        assert np.asarray(image).std() > 2
    assert len(set(files.values())) == 65


def test_covers_in_parquet_are_the_same(covers: Path, tmp_path: Path) -> None:
    config = COVERS.model_copy(update={"layout": "parquet", "images_per_shard": 20})
    out = generate(album_covers, tmp_path / "parquet", config)
    shards = sorted((out / "data").iterdir())
    assert [shard.name for shard in shards] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    found = {}
    for shard in shards:
        table = pq.read_table(shard)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert features["label"] == {"names": album_covers.genres(config), "_type": "ClassLabel"}
        for row in table.to_pylist():
            genre = features["label"]["names"][row["label"]]
            found[f"{genre}/{row['image']['path']}"] = row["image"]["bytes"]
        assert len(set(table.column("label").to_pylist())) == 4
    in_folders = contents(covers)
    del in_folders["synthetic.json"]
    assert found == in_folders


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_the_reader_of_the_real_covers_takes_them(tmp_path: Path, layout: str) -> None:
    out = generate(album_covers, tmp_path / "made", COVERS.model_copy(update={"layout": layout}))
    config = real_covers.Config(path=str(out), image={"size": 8})
    assert real_covers.class_names(config) == album_covers.genres(COVERS)
    found = rows(real_covers, config)
    assert len(found) == 65
    assert Counter(row["labels"][0] for row in found) == {0: 17, 1: 16, 2: 16, 3: 16}
    assert {row["group"] for row in found} == {row["id"] for row in found}


def test_pets_are_laid_out_as_the_real_ones(animals: Path) -> None:
    files = contents(animals)
    assert set(files) == {
        "synthetic.json", *(f"annotations/{name}.txt" for name in ("list", "trainval", "test")),
        *(f"images/{name}_{turn}.jpg" for name in BREEDS for turn in (1, 2, 3)),
        "images/Abyssinian_1.mat", "images/Abyssinian_2.mat",
    }  # fmt: skip
    lines = files["annotations/list.txt"].decode().splitlines()
    assert [line for line in lines if line[0] == "#"] == pets.HEADER.splitlines()
    listed = [line.split() for line in lines if line[0] != "#"]
    assert len(listed) == 111
    for stem, breed, species, within in listed:
        assert species == ("1" if stem[0].isupper() else "2")
        assert 1 <= int(breed) <= 37
        assert 1 <= int(within) <= (12 if species == "1" else 25)
    assert listed[0] == ["Abyssinian_1", "1", "1", "1"]
    assert listed[-1] == ["yorkshire_terrier_3", "37", "2", "25"]
    halves = [
        {line.split()[0] for line in files[f"annotations/{n}.txt"].decode().splitlines()} for n in ("trainval", "test")
    ]
    assert halves[0] | halves[1] == {words[0] for words in listed}
    assert not halves[0] & halves[1]
    assert (len(halves[0]), len(halves[1])) == (74, 37)
    seen = Counter()
    for name, data in files.items():
        if name.endswith(".jpg"):
            image = Image.open(io.BytesIO(data))
            seen[image.format, image.mode] += 1
            assert 0.5 * 64 < min(image.size) <= max(image.size) <= 64
    assert seen == {("JPEG", "L"): 2, ("JPEG", "CMYK"): 2, ("PNG", "RGB"): 2, ("GIF", "P"): 2, ("JPEG", "RGB"): 103}


@pytest.mark.parametrize("by", ["stratified", "official"])
def test_the_reader_of_the_real_pets_takes_them(animals: Path, by: str) -> None:
    fractions = {"train": 0.5, "test": 0.5} if by == "official" else {"train": 0.4, "val": 0.3, "test": 0.3}
    for target, number in (("breed", 37), ("species", 2)):
        split = {"by": by, "fractions": fractions}
        config = oxford_pets.Config(path=str(animals), image={"size": 8}, split=split, target=target)
        found = rows(oxford_pets, config)
        assert len(found) == 111
        names = oxford_pets.class_names(config)
        assert len(names) == number
        for row in found:
            breed = row["id"].rpartition("_")[0]
            assert names[row["labels"][0]] == (breed if target == "breed" else "cat" if breed[0].isupper() else "dog")
    assert "2 MATLAB files" in oxford_pets.split_report(config)


def test_fewer_breeds_are_cats_and_dogs(tmp_path: Path) -> None:
    config = pets.Config(num_images=7, num_classes=3, size=48, oddities=False)
    assert pets.breeds(config) == ["Abyssinian", "american_bulldog", "american_pit_bull_terrier"]
    files = contents(generate(pets, tmp_path / "few", config))
    assert {Image.open(io.BytesIO(d)).mode for n, d in files.items() if n.endswith(".jpg")} == {"RGB"}
    assert not any(name.endswith(".mat") for name in files)


@pytest.mark.parametrize(("module", "config"), [(album_covers, COVERS), (pets, PETS)], ids=["covers", "pets"])
def test_bytes_depend_on_the_settings_alone(
    module: ModuleType, config: Any, covers: Path, animals: Path, tmp_path: Path
) -> None:
    whole = contents(covers if module is album_covers else animals)
    out = generate(module, tmp_path / "again", config, num_processes=2)
    assert contents(out) == whole
    images = sorted(path for path in out.rglob("*.jpg"))
    images[3].unlink()
    assert contents(generate(module, out, config)) == whole  # what is missing is made
    other = contents(generate(module, tmp_path / "other", config.model_copy(update={"seed": 99})))
    assert not {data for name, data in other.items() if name.endswith("jpg")} & set(whole.values())
    with pytest.raises(ValueError, match="holds a corpus of other settings"):
        generate(module, out, config.model_copy(update={"seed": 99}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and is no made-up corpus"):
        generate(module, tmp_path / "mine", config)


def test_images_of_a_class_differ(covers: Path, animals: Path) -> None:
    """No two are near copies of one another, as a perceptual hash sees it."""
    for folder in (covers, animals):
        words = [image_hash.perceptual_hash(path.read_bytes()) for path in sorted(folder.rglob("*.jpg"))]
        found = image_hash.near_pairs(np.array([word for word in words if word is not None], np.uint64), 4)
        assert len(found) <= 1


@pytest.mark.parametrize(
    "wrong", [{"num_images": 0}, {"num_classes": 1}, {"num_classes": 38}, {"size": 8}, {"overlap": 2}, {"sise": 3}]
)
@pytest.mark.parametrize("module", [album_covers, pets])
def test_settings_that_can_not_be(module: ModuleType, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        module.Config(**wrong)


# ---- What is drawn


def test_styles_name_what_there_is() -> None:
    assert set(GENRES) == set(real_covers.GENRES)
    drawn = {
        "palette": PALETTES, "ground": album_covers._GROUNDS, "motif": MOTIFS, "lettering": album_covers._LETTERINGS,
        "repeat": ["one", "mirror", "quarters", "scattered", "grid"], "frame": ["none", "border", "lines"],
        "texture": ["none", "grain", "soft", "worn", "dots"],
    }  # fmt: skip
    for cue, choices in drawn.items():
        assert {choice for style in GENRES.values() for choice in getattr(style, cue)} == set(choices), cue
    assert len({tuple(vars(style).values()) for style in GENRES.values()}) == 20
    for trait, choices in (("coat", COATS), ("eyes", EYES), ("head", HEADS), ("muzzle", MUZZLES)):
        assert {choice for breed in BREEDS.values() for choice in getattr(breed, trait)} == set(choices), trait
    assert (sum(name[0].isupper() for name in BREEDS), len(BREEDS)) == (12, 37)
    assert len({tuple(vars(breed).values()) for breed in BREEDS.values()}) == 37
    assert all(("cat" in breed.muzzle[0]) == name[0].isupper() for name, breed in BREEDS.items())


def test_letters_differ_and_stand_side_by_side() -> None:
    assert len(_LETTERS) == len(set(_LETTERS.values())) == 26
    drawn = squares("HI")
    assert {row for column, row in drawn if column == 0} == {0, 1, 2, 3, 4}
    assert {(column, row) for column, row in drawn if column > 3} == {
        (4, 0),
        (5, 0),
        (6, 0),
        (5, 1),
        (5, 2),
        (5, 3),
        (4, 4),
        (5, 4),
        (6, 4),
    }


def test_shapes_stand_where_they_are_placed() -> None:
    canvas = Canvas(Image.new("RGB", (200, 100)))
    canvas.place(0.5, -0.2, 0.5, np.pi / 2)  # a unit is 50 pixels; (0, 0) at (150, 30)
    canvas.rectangle(0, -0.1, 0.4, 0.1, (255, 0, 0))  # to the right, turned down
    red = np.argwhere(np.asarray(canvas.image)[:, :, 0])
    np.testing.assert_allclose(red.min(axis=0), [30, 145], atol=1)
    np.testing.assert_allclose(red.max(axis=0), [50, 155], atol=1)
    canvas.place(-0.5, 0, 0.4, 0, flip=True)
    canvas.ellipse(0.5, 0, 0.2, 0.1, (0, 255, 0))  # to the left: 40 pixels a unit from (50, 50)
    green = np.argwhere(np.asarray(canvas.image)[:, :, 1])
    np.testing.assert_allclose(green.mean(axis=0), [50, 30], atol=0.6)
    np.testing.assert_allclose(np.ptp(green, axis=0), [8, 16], atol=1)


def test_grain_and_clouds() -> None:
    random = np.random.default_rng(0)
    noise = np.asarray(grain(Image.new("RGB", (200, 200), (128, 5, 250)), 20, random)).astype(int)
    assert (noise[..., 0].min(), noise[..., 0].max()) == (108, 148)
    assert abs(noise[..., 0].mean() - 128) < 0.5
    assert (noise[..., 1].min(), noise[..., 2].max()) == (0, 255)
    image = clouds(60, 40, 4, [(200, 0, 0), (0, 0, 200)], random)
    assert image.size == (60, 40)
    assert np.asarray(image)[..., 1].max() == 0
