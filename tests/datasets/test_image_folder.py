"""image_folder, and what all image corpora share: listing, copies, division, rows, bad input."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_corpora import encoded, picture, rows, splits, write
from PIL import Image

from mmray import config as run_config
from mmray import preparation
from mmray.datasets import Rejected, _images, image_folder
from mmray.datasets.image_folder import Config, class_names, sources, split_report
from mmray.features import images

FORMS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".webp": "WEBP"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two classes of twenty images, in several formats, one folder deep or two."""
    folder = tmp_path / "corpus"
    for number, label in enumerate(("cat", "dog")):
        for i in range(20):
            suffix = list(FORMS)[i % 4]
            name = f"{i:02d}{suffix}" if i % 5 else f"deep/{i:02d}{suffix}"
            write(folder / label / name, 100 * number + i, FORMS[suffix], height=10 + i, width=20)
    return folder


def config(path: Path, **values: Any) -> Config:
    return Config(**{"path": str(path), "image": {"size": (12, 16)}, **values})


def listed(config_: Config, reject: Any = pytest.fail) -> list[dict[str, Any]]:
    return rows(image_folder, config_, reject=reject)


def test_rows_are_the_images_of_the_files(corpus: Path) -> None:
    config_ = config(corpus)
    found = listed(config_)
    assert class_names(config_) == ["cat", "dog"]
    assert {row["id"] for row in found} == {p.relative_to(corpus).as_posix() for p in corpus.rglob("*.*")}
    for row in found:
        image = Image.open(corpus / row["id"]).convert("RGB").resize((16, 12), Image.Resampling.BILINEAR)
        assert np.abs(row["image"].astype(int) - np.asarray(image)).max() <= 2
        assert row["labels"] == [["cat", "dog"].index(row["id"][:3])]
        assert row["group"] == row["id"]
        scaled = row["image"].reshape(-1, 3) / 255
        np.testing.assert_allclose(row["channel_mean"], scaled.mean(0), rtol=1e-6)
        np.testing.assert_allclose(row["channel_mean_square"], (scaled**2).mean(0), rtol=1e-6)


def test_stored_jpeg_files_are_described_as_they_are_decoded(corpus: Path) -> None:
    config_ = config(corpus, image={"size": 16, "store": "jpeg", "jpeg_quality": 40})
    for row in listed(config_):
        scaled = images.decode_stored(row["image"], config_.image).numpy() / 255
        np.testing.assert_allclose(row["channel_mean"], scaled.mean((1, 2)), rtol=1e-6)


def test_classes_are_divided_alike_and_at_random(corpus: Path) -> None:
    config_ = config(corpus, split={"fractions": {"train": 0.7, "val": 0.15, "test": 0.15}})
    found = splits(listed(config_))
    wanted = {("cat", "train"): 14, ("cat", "val"): 3, ("cat", "test"): 3}
    assert Counter((id[:3], split) for id, split in found.items() if id[0] == "c") == wanted
    assert Counter(found.values()) == {"train": 28, "val": 6, "test": 6}
    assert splits(listed(config_)) == found
    others = [splits(listed(config_.model_copy(update={"split": _images.Split(seed=seed)}))) for seed in range(4)]
    assert len({tuple(sorted(other.items())) for other in others}) == 4
    assert "  cat: 14 / 3 / 3\n  dog: 14 / 3 / 3" in split_report(config_)
    assert {s.split for s in sources(config(corpus, split={"by": "none"}))} == {None}
    assert "prepare.split" in split_report(config(corpus, split={"by": "none"}))


def test_sources_are_some_files_each(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = splits(listed(config(corpus)))
    monkeypatch.setattr(image_folder, "_FILES", 3)
    found = sources(config(corpus))
    assert sources(config(corpus)) == found
    paths = [path for source in found for path in (source.path, *source.companions)]
    assert sorted(paths) == sorted(str(p) for p in corpus.rglob("*.*"))
    for source in found:
        files = (source.path, *source.companions)
        assert len(files) <= 3
        assert source.num_bytes == sum(Path(path).stat().st_size for path in files)
    assert splits(listed(config(corpus))) == whole
    # Neighbours are of any class, so that a row group is a mixture.
    first = [Path(path).relative_to(corpus).parts[0] for path in paths[:16]]
    assert 3 <= Counter(first)["cat"] <= 13


def test_a_table_of_files(corpus: Path) -> None:
    with (corpus / "labels.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["file", "species", "owner"])
        for path in sorted(corpus.glob("*/*.*")):
            out.writerow([path.relative_to(corpus), path.parent.name.upper(), int(path.stem) // 3])
    names = {"path": "file", "label": "species", "group": "owner"}
    config_ = config(corpus / "labels.csv", columns=names, split={"fractions": {"train": 0.5, "test": 0.5}})
    found = listed(config_)
    assert class_names(config_) == ["CAT", "DOG"]
    assert len(found) == 32
    by_group = defaultdict(set)
    for row in found:
        by_group[row["group"]].add(row["split"])
        assert row["group"] == str(int(Path(row["id"]).stem) // 3)
    assert all(len(of_group) == 1 for of_group in by_group.values())
    with pytest.raises(ValueError, match=r"no column 'label', which dataset\.columns\.label names"):
        sources(config(corpus / "labels.csv", columns={"path": "file"}))


def test_the_corpus_s_own_split(corpus: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for path in (corpus / label).glob("*.*"):
                if (int(path.stem) % 4 == 1) == (split == "test"):
                    target = tmp_path / "own" / split / label / path.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(path.read_bytes())
    fractions = {"train": 0.75, "val": 0.25}
    own = config(tmp_path / "own", split={"by": "official", "fractions": fractions})
    found = splits(listed(own))
    assert {id for id, split in found.items() if split == "test"} == {id for id in found if id.startswith("test/")}
    # 12 of each class are in train, of which val gets a quarter.
    assert Counter(found.values()) == {"train": 18, "val": 6, "test": 8}
    assert class_names(own) == ["cat", "dog"]
    assert own.why_corpus_split is not None
    assert set(splits(listed(config(tmp_path / "own"))).values()) == {"train", "val", "test"}
    with pytest.raises(ValueError, match="belongs to no split"):
        sources(config(corpus, split={"by": "official"}))
    (tmp_path / "own/test/cat/copy.png").write_bytes(next((tmp_path / "own/train/cat").iterdir()).read_bytes())
    assert "this split leaks: 1 test images, such as test/cat/copy.png" in split_report(own)


# ---- Copies


def test_copies_stand_in_one_split(corpus: Path) -> None:
    for i in range(6, 14):
        for copy in range(3):
            suffix = list(FORMS)[i % 4]
            source = corpus / "cat" / (f"{i:02d}{suffix}" if i % 5 else f"deep/{i:02d}{suffix}")
            (corpus / "cat" / f"copy {copy} of {i}{suffix}").write_bytes(source.read_bytes())
    found = listed(config(corpus))
    groups = defaultdict(list)
    for row in found:
        groups[row["group"]].append(row)
    assert Counter(map(len, groups.values())) == {1: 32, 4: 8}
    for members in groups.values():
        assert len({row["split"] for row in members}) == 1
        assert len({row["image"].tobytes() for row in members}) == 1
        assert members[0]["group"] == min(row["id"] for row in members)
    assert "32 images stand in 8 groups" in split_report(config(corpus))
    ignoring = listed(config(corpus, duplicates="ignore"))
    assert len({row["group"] for row in ignoring}) == len(ignoring) == 64


def test_near_copies_stand_in_one_split(corpus: Path) -> None:
    for i in range(8):
        tiles = np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)
        image = Image.fromarray(tiles).resize((180, 180), Image.Resampling.NEAREST)
        (corpus / "cat" / f"big{i}.png").write_bytes(encoded(image))
        (corpus / "cat" / f"near{i}.jpg").write_bytes(encoded(image.resize((140, 160)), "JPEG", quality=70))
    for name, colour in (("black", "black"), ("white", "white")):
        (corpus / "cat" / f"{name}.png").write_bytes(encoded(Image.new("RGB", (50, 50), colour)))
    found = {row["id"]: row for row in listed(config(corpus, duplicates="perceptual"))}
    for i in range(8):
        assert found[f"cat/big{i}.png"]["group"] == found[f"cat/near{i}.jpg"]["group"]
        assert found[f"cat/big{i}.png"]["split"] == found[f"cat/near{i}.jpg"]["split"]
    assert found["cat/black.png"]["group"] == "cat/black.png"
    exact = {row["id"]: row for row in listed(config(corpus))}
    assert all(exact[id]["group"] == id for id in exact)


def test_groups_of_a_table_and_copies_hang_together(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path / f"{i:02d}.png", i)
    (tmp_path / "03.png").write_bytes((tmp_path / "10.png").read_bytes())
    lines = [f"{i:02d}.png,{'ab'[i % 2] if i not in (3, 10) else 'a'},owner {i // 3}" for i in range(30)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,group", *lines]))
    found = {row["id"]: row for row in listed(config(tmp_path / "t.csv", columns={"group": "group"}))}
    together = {"03.png", "04.png", "05.png", "09.png", "10.png", "11.png"}
    assert {id for id, row in found.items() if row["group"] == "owner 1"} == together
    assert len({found[id]["split"] for id in together}) == 1


def test_an_image_under_two_classes(corpus: Path) -> None:
    twin = (corpus / "cat/01.jpg").read_bytes()
    (corpus / "dog/twin.jpg").write_bytes(twin)
    (corpus / "dog/triplet.jpg").write_bytes(twin)
    both = r"1 image under two classes:\n  cat/01.jpg \(cat\); dog/triplet.jpg \(dog\); dog/twin.jpg \(dog\)\n"
    with pytest.raises(ValueError, match=both + "remove the wrong copies, or set dataset.conflicting_labels: drop"):
        sources(config(corpus))
    rejected: list[Rejected] = []
    found = listed(config(corpus, conflicting_labels="drop"), rejected.append)
    assert len(found) == 39
    assert {Path(bad.path).name for bad in rejected} == {"01.jpg", "triplet.jpg", "twin.jpg"}
    assert all("cat/01.jpg (cat); dog/triplet.jpg (dog)" in bad.reason for bad in rejected)
    kept = {row["id"]: row for row in listed(config(corpus, conflicting_labels="keep"))}
    assert len(kept) == 42
    assert (kept["cat/01.jpg"]["labels"], kept["dog/twin.jpg"]["labels"]) == ([0], [1])
    assert kept["cat/01.jpg"]["split"] == kept["dog/twin.jpg"]["split"]
    assert len(listed(config(corpus, duplicates="ignore"))) == 42


# ---- Bad input


def test_content_decides_what_is_an_image(corpus: Path) -> None:
    (corpus / "cat/picture.mat").write_bytes(encoded(picture(900)))
    (corpus / "cat/no suffix").write_bytes(encoded(picture(901), "JPEG"))
    bad = {"a.jpg": b"MATLAB 5.0 MAT-file", "b.png": b"", "c.jpg": b"text\n" * 50, "d.gif": bytes(99)}
    bad["e.jpg"] = encoded(picture(902), "JPEG")[:-40]
    for name, data in bad.items():
        (corpus / "dog" / name).write_bytes(data)
    (corpus / "dog/.hidden").write_text("passed over")
    rejected: list[Rejected] = []
    found = listed(config(corpus), rejected.append)
    assert len(found) == 42
    assert {"cat/picture.mat", "cat/no suffix"} <= {row["id"] for row in found}
    reasons = {Path(r.path).name: r.reason for r in rejected}
    assert reasons.keys() == bad.keys()
    for name, reason in zip(bad, ("MATLAB", "empty", "text", "null bytes", "truncated"), strict=True):
        assert reason in reasons[name]


def test_files_beside_the_classes(corpus: Path) -> None:
    (corpus / "README.md").write_text("where these come from")
    assert len(listed(config(corpus))) == 40
    assert f"1 files in {corpus} are no images: README.md" in split_report(config(corpus))
    write(corpus / "stray.png", 999)
    with pytest.raises(ValueError, match=r"stray\.png is an image beside the folders of classes"):
        sources(config(corpus))


def test_images_without_classes(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
    with pytest.raises(ValueError, match="no image has a class"):
        sources(config(tmp_path))
    found = listed(config(tmp_path, classes=["cat", "dog"], split={"by": "none"}))
    assert [row["labels"] for row in found] == [[]] * 3
    assert {row["id"] for row in found} == {"0.png", "1.png", "2.png"}
    (row,) = listed(config(tmp_path / "1.png", classes=["cat", "dog"], split={"by": "none"}))
    assert (row["id"], row["labels"]) == ("1.png", [])


def test_classes_may_be_given(corpus: Path) -> None:
    found = listed(config(corpus, classes=["dog", "bird", "cat"]))
    assert {(row["id"][:3], *row["labels"]) for row in found} == {("dog", 0), ("cat", 2)}
    with pytest.raises(ValueError, match=r"is of class 'cat', which is not among\s+dataset.classes=\['dog'\]"):
        sources(config(corpus, classes=["dog"]))
    with pytest.raises(ValueError, match="a class stands twice"):
        config(corpus, classes=["dog", "dog"])
    for path in (corpus / "dog").rglob("*.*"):
        path.unlink()
    (corpus / "dog/deep").rmdir()
    (corpus / "dog").rmdir()
    with pytest.raises(ValueError, match=r"all 20 images are of class 'cat' .*; nothing can be learnt"):
        sources(config(corpus))
    assert {tuple(row["labels"]) for row in listed(config(corpus, classes=["cat", "dog"]))} == {(0,)}


def test_corpora_that_can_not_be(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' does not exist"):
        sources(config(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image there"):
        sources(config(tmp_path / "empty"))
    (corpus / "bird").mkdir()
    with pytest.raises(ValueError, match="no file in bird; every folder there is a class"):
        sources(config(corpus))
    write(corpus / "bird/1.png", 900)
    write(corpus / "bird/2.png", 901)
    with pytest.raises(ValueError, match=r"class 'bird' has 2 groups \(bird/1.png, bird/2.png\), too few for one in"):
        sources(config(corpus))
    (corpus / "bird/3.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"3\.png is a link to nothing"):
        sources(config(corpus))


def test_preparing_counts_every_image_and_sums_its_channels(corpus: Path, tmp_path: Path) -> None:
    (corpus / "cat/bad.jpg").write_text("not an image")
    values = {
        "name": "x", "task": "video_classification", "model": "logistic",
        "dataset": {"name": "image_folder", **config(corpus).model_dump(mode="json", exclude={"name"})},
        "prepare": {"out": str(tmp_path / "prepared"), "on_bad_input": "skip", "max_bad_fraction": 0.1},
    }  # fmt: skip
    run = run_config.from_dict(values)
    plan = preparation.plan(run)
    info = preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    assert (info.rows_in, info.rows_out, info.rejected) == (41, 40, 1)
    (bad,) = map(json.loads, (plan.folder / "rejected.jsonl").read_text().splitlines())
    assert bad["path"] == str(corpus / "cat/bad.jpg")
    for split in info.splits.values():
        table = pa.concat_tables(pq.read_table(plan.folder / file.path) for file in split.files)
        for name in image_folder.SUMMED:
            sums = np.sum(table.column(name).to_pylist(), axis=0)
            np.testing.assert_allclose(split.sums[name], sums, rtol=1e-6)
    same = preparation.plan(run).folder
    assert same == plan.folder
    write(corpus / "dog/01.jpg", 555, "JPEG")  # one file of a source changes, and it is another corpus
    assert preparation.plan(run).folder != same
