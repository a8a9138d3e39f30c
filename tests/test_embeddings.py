"""Stored embeddings: who is near whom, and how they become vectors of other corpora's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from mmray import config, embeddings, preparation, prepared
from mmray.cli import cli
from mmray.config import section_from_dict
from mmray.datasets import _joined
from mmray.datasets import embeddings as dataset
from mmray.embeddings import EmbeddingsInfo, columns_of, neighbours, splits_of
from mmray.files import write_json
from mmray.prepared import SplitReader, tensor_column
from mmray.schema import Column, arrow_schema

OF_DATASET = [
    Column(name="id", dtype="string"),
    Column(name="group", dtype="string"),
    Column(name="labels", dtype="int32", shape=(None,), unit="class"),
    Column(name="sight", dtype="float32", shape=(9,)),
]
NAMES = ["cat", "dog", "cow"]
Floats = npt.NDArray[np.float32]


def write_split(
    run: Path,
    split: str,
    vectors: Floats,
    ids: list[str] | None = None,
    groups: list[str] | None = None,
    labels: list[list[int]] | None = None,
    **changes: Any,
) -> list[str]:
    """Embed by hand: rows with these vectors (n, E) in two files; return their ids."""
    folder, num = run / embeddings.FOLDER / split, len(vectors)
    ids = ids or [f"{split}-{i}" for i in range(num)]
    columns = columns_of(OF_DATASET, vectors.shape[1], vectors.dtype.name)  # type: ignore[arg-type]
    labels = labels if labels is not None else [[i % 3] for i in range(num)]
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(vectors)
    arrays = [pa.array(ids), pa.array(groups or ids), pa.array(labels, pa.list_(pa.int32())), tensors]
    table = pa.table(arrays, schema=arrow_schema(columns))
    folder.mkdir(parents=True, exist_ok=True)
    for part, (start, stop) in enumerate(((0, num // 2), (num // 2, num))):
        pq.write_table(table.slice(start, stop - start), folder / f"part-{part:05d}.parquet")
    values = {"run": run.name, "dataset": "d", "split": split, "step": 7, "rows": num, "left_out": 0}
    info = EmbeddingsInfo(**values | {"class_names": NAMES, "columns": columns} | changes)
    write_json(folder / embeddings.FILE, info.model_dump(mode="json"))
    return ids


def gaussian(seed: int, num: int, size: int = 5) -> Floats:
    return np.random.default_rng(seed).standard_normal((num, size), np.float32)


# Neighbours


def test_neighbours_are_those_of_the_largest_cosine_of_all_splits(tmp_path: Path) -> None:
    sizes = {"test": 20, "train": 41, "val": 13}
    vectors = {split: gaussian(seed, num) for seed, (split, num) in enumerate(sizes.items())}
    ids = {split: write_split(tmp_path, split, of_split) for split, of_split in vectors.items()}
    every = np.concatenate(list(vectors.values())).astype(np.float64)
    names = [name for of_split in ids.values() for name in of_split]
    unit = every / np.linalg.norm(every, axis=1)[:, None]
    for place in (0, 25, len(names) - 1):
        itself, found = neighbours(tmp_path, names[place], 9)
        wanted = [i for i in np.argsort(-(unit @ unit[place]), kind="stable") if i != place][:9]
        assert [row.id for row in found] == [names[i] for i in wanted]
        assert [row.cosine for row in found] == pytest.approx((unit @ unit[place])[wanted].tolist(), abs=1e-6)
        assert itself.id == names[place]
        assert itself.cosine == pytest.approx(1)
        assert all(row.id.startswith(f"{row.split}-") for row in found)
        assert all(row.labels == (NAMES[int(row.id.split("-")[1]) % 3],) for row in (itself, *found))
    assert len(neighbours(tmp_path, "val-3", 1000)[1]) == 73  # more than there are
    _, found = neighbours(tmp_path, "val-3", 5, ["test"])
    assert {row.split for row in found} == {"test"}


def test_blocks_do_not_matter_and_equals_go_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.repeat(gaussian(0, 4), 5, axis=0)
    vectors[7] = 0  # without a direction
    write_split(tmp_path, "train", vectors)
    _, found = neighbours(tmp_path, "train-0", 30)
    assert [row.id for row in found[:4]] == ["train-1", "train-2", "train-3", "train-4"]
    assert len(found) == 19
    assert next(row.cosine for row in found if row.id == "train-7") == 0
    read = embeddings.read_tables
    monkeypatch.setattr(embeddings, "read_tables", lambda folder, columns: read(folder, columns, batch_rows=3))
    for k in (1, 2, 4, 6, 19, 30):
        again = neighbours(tmp_path, "train-0", k)[1]
        assert [row.id for row in again] == [row.id for row in found[:k]]


def test_what_has_no_neighbours_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no embeddings; make them with mmray embed RUN"):
        splits_of(tmp_path)
    write_split(tmp_path, "train", np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="no row 'x' among the 3 that are embedded, of train"):
        neighbours(tmp_path, "x")
    with pytest.raises(ValueError, match="the embedding of 'train-1' is 0"):
        neighbours(tmp_path, "train-1")
    with pytest.raises(ValueError, match="has no embeddings of split 'tset'; it has train"):
        neighbours(tmp_path, "train-1", splits=["tset"])
    (tmp_path / embeddings.FOLDER / "train" / "part-00000.parquet").unlink()
    with pytest.raises(ValueError, match="should hold 3 rows and holds 2; embed again"):
        neighbours(tmp_path, "nobody")


def test_the_command_line_shows_neighbours_with_their_labels(tmp_path: Path) -> None:
    write_split(tmp_path, "train", np.array([[1, 0], [1, 1], [0, 1]], np.float32))
    result = CliRunner().invoke(
        cli, ["neighbours", str(tmp_path), "--id", "train-0", "-k", "2"], catch_exceptions=False
    )
    assert [line.split() for line in result.output.splitlines()] == [
        ["1.0000", "train", "train-0", "cat"],
        ["0.7071", "train", "train-1", "dog"],
        ["0.0000", "train", "train-2", "cow"],
    ]


# Joined to the rows of others


def joined(path: Path, **values: Any) -> _joined.Joined:
    given = {"path": str(path), "name": "title", "cache": str(path / "cache"), **values}
    return section_from_dict(_joined.Joined, given)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_are_joined_by_id_from_all_splits(tmp_path: Path, dtype: type) -> None:
    vectors: dict[str, Floats] = {
        split: gaussian(seed, 11).astype(dtype) for seed, split in enumerate(("train", "val"))
    }
    by_id = {
        id_: vector
        for split, of_split in vectors.items()
        for id_, vector in zip(write_split(tmp_path, split, of_split), of_split, strict=True)
    }
    settings = [joined(tmp_path, dtype=np.dtype(dtype).name)]
    assert [(c.name, c.dtype, c.shape) for c in _joined.columns(settings)] == [
        ("title", np.dtype(dtype).name, (5,)), ("has_title", "uint8", ()),
    ]  # fmt: skip
    wanted = ["val-3", "nobody", "train-10", "train-0", "", "val-3"]
    title, there = _joined.Join(settings).columns_of(pa.array(wanted))
    assert there.to_pylist() == [1, 0, 1, 1, 0, 1]
    assert np.array_equal(title.to_numpy_ndarray(), np.array([by_id.get(name, np.zeros(5, dtype)) for name in wanted]))
    assert title.to_numpy_ndarray().dtype == dtype


def test_numbers_too_large_for_their_type_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "train", np.array([[1, 2], [70_000, 3]], np.float32))
    half = _joined.Join([joined(tmp_path, dtype="float16")])
    assert half.columns_of(pa.array(["train-0"]))[0].to_numpy_ndarray().tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="title has numbers beyond float16; set dtype: float32"):
        half.columns_of(pa.array(["train-1"]))


def test_rows_of_a_group_are_averaged(tmp_path: Path) -> None:
    vectors = gaussian(0, 6)
    write_split(tmp_path, "train", vectors, groups=["x", "y", "x", "z", "x", "y"])
    (mean, there) = _joined.Join([joined(tmp_path, key="group")]).columns_of(pa.array(["y", "x", "train-0", "z"]))
    assert there.to_pylist() == [1, 1, 0, 1]
    wanted = [vectors[[1, 5]].mean(0), vectors[[0, 2, 4]].mean(0), np.zeros(5), vectors[3]]
    np.testing.assert_allclose(mean.to_numpy_ndarray(), wanted, rtol=1e-6)


def test_what_was_embedded_anew_is_joined_anew(tmp_path: Path) -> None:
    first, second = gaussian(0, 4), gaussian(1, 4)
    write_split(tmp_path, "train", first)
    ids = pa.array(["train-2"])
    before = _joined.Join([joined(tmp_path)]).columns_of(ids)[0].to_numpy_ndarray()
    write_split(tmp_path, "train", second, step=8)
    after = _joined.Join([joined(tmp_path)]).columns_of(ids)[0].to_numpy_ndarray()
    assert (before.tolist(), after.tolist()) == ([first[2].tolist()], [second[2].tolist()])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 4}, "size=4, but .* has vectors of 5"),
        ({"name": "a title"}, "name='a title'"),
        ({"key": "name"}, "key='name'"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    write_split(tmp_path, "train", gaussian(0, 2))
    with pytest.raises(ValueError, match=message):
        _joined.Join([joined(tmp_path, **values)])


def test_embeddings_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "train", gaussian(0, 2))
    with pytest.raises(ValueError, match="two columns are called 'title'"):
        _joined.columns([joined(tmp_path), joined(tmp_path)])
    write_split(tmp_path, "val", gaussian(1, 2), ids=["val-0", "train-1"])
    with pytest.raises(ValueError, match=r"'train-1' stands in row 1 and in row 3.*embedded in two splits"):
        _joined.Join([joined(tmp_path)])
    write_split(tmp_path, "val", gaussian(1, 2), step=9)
    with pytest.raises(ValueError, match=r"at step 9, split 'train' by .* at step 7; embed all splits anew"):
        _joined.columns([joined(tmp_path)])


# As a corpus of their own


def fused(tmp_path: Path, key: str) -> dataset.Config:
    both = [
        {"path": str(tmp_path / name), "key": key, "name": name, "cache": str(tmp_path / "cache")}
        for name in ("sight", "sound")
    ]
    values = {"name": "embeddings", "path": str(tmp_path / "sight"), "key": key, "joined": both}
    return section_from_dict(dataset.Config, values)


def test_rows_made_of_the_vectors_of_two_runs(tmp_path: Path) -> None:
    """Ids, labels and splits are those of the first; prepared as any corpus."""
    sight = {"train": gaussian(0, 9), "val": gaussian(1, 4), "test": gaussian(2, 5)}
    for split, vectors in sight.items():
        write_split(tmp_path / "sight", split, vectors)
    sound = {f"train-{i}": vector for i, vector in enumerate(gaussian(3, 6, size=2))}
    sound |= {"test-1": np.array([8, 9], np.float32)}
    write_split(tmp_path / "sound", "train", np.array(list(sound.values())), ids=list(sound))
    run = config.from_dict(
        {
            "name": "x", "task": "video_classification", "model": "moe",
            "dataset": fused(tmp_path, "id").model_dump(), "prepare": {"out": str(tmp_path / "prepared")},
        }
    )  # fmt: skip
    plan = preparation.plan(run)
    info = preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
    assert prepared.read_info(plan.folder).class_names == NAMES
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 9, "val": 4, "test": 5}
    for split, vectors in sight.items():
        names = tuple(column.name for column in info.columns)
        rows = SplitReader(plan.folder, info.split(split), names).take(np.arange(len(vectors)))
        ids = [f"{split}-{i}" for i in range(len(vectors))]
        assert rows.column("id").to_pylist() == ids
        assert rows.column("labels").to_pylist() == [[i % 3] for i in range(len(vectors))]
        assert np.array_equal(tensor_column(rows, "sight"), vectors)
        assert np.array_equal(tensor_column(rows, "sound"), [sound.get(name, np.zeros(2)) for name in ids])
        assert rows.column("has_sound").to_pylist() == [int(name in sound) for name in ids]
    assert dataset.split_report(fused(tmp_path, "id")).splitlines() == [
        "test: 5 of 5 rows have sight; 0 of them were trained on there",
        "test: 1 of 5 rows have sound; 1 of them were trained on there; scores flatter",
        "train: 9 of 9 rows have sight",
        "train: 6 of 9 rows have sound",
        "val: 4 of 4 rows have sight; 0 of them were trained on there",
        "val: 0 of 4 rows have sound; 0 of them were trained on there",
    ]


def test_groups_as_rows_with_one_label_or_rejected(tmp_path: Path) -> None:
    vectors = gaussian(0, 5)
    groups, labels = ["x", "y", "x", "z", "z"], [[0], [1], [0], [1], [2]]
    write_split(tmp_path / "sight", "train", vectors, groups=groups, labels=labels)
    write_split(tmp_path / "sound", "all", gaussian(1, 3, size=2), ids=["1", "2", "3"], groups=["y", "y", "q"])
    settings = fused(tmp_path, "group")
    rejected: list[str] = []
    (source,) = dataset.sources(settings)
    (batch,) = dataset.read(settings, source, lambda bad: rejected.append(bad.reason))
    assert batch.column("id").to_pylist() == ["x", "y"]
    assert batch.column("labels").to_pylist() == [[0], [1]]
    assert rejected == ["rows of group z have different labels"]
    sight = batch.column("sight").to_numpy_ndarray()
    np.testing.assert_allclose(sight, [vectors[[0, 2]].mean(0), vectors[1]], rtol=1e-6)
    assert batch.column("has_sound").to_pylist() == [0, 1]
    assert batch.schema.equals(arrow_schema(dataset.columns(settings)))


def test_sizes_that_are_given_are_announced_before_anything_is_embedded(tmp_path: Path) -> None:
    announced = [(column.name, column.shape) for column in _joined.columns([joined(tmp_path, size=4096)])]
    assert announced == [("title", (4096,)), ("has_title", ())]
    with pytest.raises(ValueError, match="holds no embeddings"):
        _joined.columns([joined(tmp_path)])


def test_classes_that_are_given_are_those_of_the_run(tmp_path: Path) -> None:
    for name in ("sight", "sound"):
        write_split(tmp_path / name, "train", gaussian(0, 2))
    settings = fused(tmp_path, "id")
    assert dataset.class_names(settings) == NAMES
    settings = settings.model_copy(update={"classes": ("cat", "cow", "dog")})
    assert dataset.class_names(settings) == ["cat", "cow", "dog"]
    with pytest.raises(
        ValueError, match=r"dataset.classes=\['cat', 'cow', 'dog'\], but those of .* are \['cat', 'dog'"
    ):
        dataset.sources(settings)


def test_rows_without_classes_are_no_corpus(tmp_path: Path) -> None:
    write_split(tmp_path / "sight", "train", gaussian(0, 2), columns=OF_DATASET[:2])
    write_split(tmp_path / "sound", "train", gaussian(0, 2))
    with pytest.raises(ValueError, match="its rows have no labels of classes; name another run"):
        dataset.sources(fused(tmp_path, "id"))
