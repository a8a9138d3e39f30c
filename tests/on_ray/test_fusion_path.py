"""Runs fused on one shared Ray: what one model embeds becomes an input of another, through files, prepared and scored.

The models keep their first weights: nothing here depends on what they have learned.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray import config, embeddings, prepared
from mmray.datasets.synthetic import music_emotion, youtube8m
from mmray.embeddings import read_info, read_tables, splits_of
from mmray.evaluation import evaluate
from mmray.on_ray.embed import embed
from mmray.on_ray.predict import predict
from mmray.on_ray.prepare import prepare
from mmray.prepared import SplitReader, tensor_column
from mmray.tasks import build, monitored
from mmray.training import checkpoint, run_folder
from mmray.training.checkpoint import TrainState

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]

SIZE = 6  # of the embedding of a title
Run = Callable[..., config.Run]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Make a run over 150 videos of which two thirds have text; keyword arguments add keys to its dataset."""
    root = tmp_path_factory.mktemp("fusion")
    made = youtube8m.Config(num_videos=150, num_classes=12, rgb_size=8, audio_size=4, videos_per_shard=40)
    youtube8m.generate(root / "corpus", made, lambda done, total: None)
    text = {"path": str(root / "corpus/text.csv"), "vectors": str(root / "corpus/word_vectors.bin")}
    dataset = {
        "name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": 12,
        "features": {"mean_rgb": 8, "mean_audio": 4},
        "text": {**text, "vector_size": 32, "clusters": 16, "cache": str(root / "cache")},
    }  # fmt: skip

    def made_run(name: str, model: dict[str, Any], **changes: Any) -> config.Run:
        values = {"name": name, "out": str(root / "runs"), "task": "video_classification", "model": model}
        values |= {"dataset": dataset | changes, "prepare": {"out": str(root / "prepared"), "part_mb": 1}}
        return config.from_dict(values | {"predict": {"batch_size": 13}})

    return made_run


@pytest.fixture(scope="module")
def titles(run_of: Run) -> Path:
    """The run folder of a model of titles."""
    model = {"name": "text_cnn", "num_widths": 2, "channels": 3, "hidden_size": SIZE}
    return untrained(run_of("titles", model))


def untrained(run: config.Run, step: int = 1, seed: int = 0) -> Path:
    """A run folder with the weights that a model begins with."""
    run_dir = run_folder.open_run(run, prepared.read_info(prepare(run)))
    task = build(run, run_folder.read_info(run_dir))
    torch.manual_seed(seed)
    model = task.build_model()
    state = TrainState(step=step, metrics={monitored(run, task)[0]: float(step)})
    checkpoint.save(run_dir, state, model, torch.optim.SGD(model.parameters()))
    return run_dir


def embedded_alone(run_dir: Path, split: str) -> dict[str, np.ndarray]:
    """Of each row that has a title its embedding, row by row, straight from the model."""
    run = run_folder.read_run(run_dir)
    folder = prepare(run)
    task = build(run, prepared.read_info(folder))
    model = task.build_model()
    checkpoint.load_model(checkpoint.folder_of(run_dir, checkpoint.last(run_dir).step), model.eval())  # type: ignore[union-attr]
    info = task.info.split(split)
    rows = SplitReader(folder, info, ("id", "title_words")).take(np.arange(info.rows)).to_pylist()
    vectors = task.inputs.vectors.matrix  # type: ignore[attr-defined]
    found = {}
    for row in rows:
        if words := row["title_words"]:
            x, offsets = torch.tensor(vectors[words]), torch.tensor([0, len(words)])
            with torch.no_grad():
                found[row["id"]] = model.embed(x, offsets)[0].numpy()  # type: ignore[operator]
    return found


def stored(run_dir: Path, split: str) -> dict[str, np.ndarray]:
    tables = list(read_tables(splits_of(run_dir)[split], ["id", "embedding"]))
    vectors = np.concatenate([tensor_column(table, "embedding") for table in tables])
    ids = [name for table in tables for name in table.column("id").to_pylist()]
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, vectors, strict=True))


def test_embeddings_are_what_the_model_reads_of_every_row_that_has_something(titles: Path) -> None:
    out = embed(titles)
    assert out == titles / embeddings.FOLDER
    folders = splits_of(titles)
    assert set(folders) == {"train", "val", "test"}
    for split, folder in folders.items():
        ours, wanted = stored(titles, split), embedded_alone(titles, split)
        info = read_info(folder)
        assert list(ours) == list(wanted)  # in the order of the rows
        assert all(ours[name] == pytest.approx(wanted[name], abs=1e-6) for name in wanted)
        assert 0 < info.left_out == info.rows - len(wanted) < info.rows
        assert [column.name for column in info.columns] == ["id", "labels", "embedding"]
        assert len(info.class_names) == 12
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    embed(titles, "val")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before  # kept


def test_a_later_checkpoint_is_embedded_anew_also_with_half_the_bits(titles: Path, run_of: Run) -> None:
    again = untrained(run_of("again", run_folder.read_run(titles).model.model_dump()))
    embed(again, "val")
    first = stored(again, "val")
    untrained(run_folder.read_run(again), step=2, seed=5)
    embed(again, "val", dtype="float16")
    second = stored(again, "val")
    assert read_info(splits_of(again)["val"]).step == 2
    wanted = embedded_alone(again, "val")
    for name, vector in second.items():
        assert vector.dtype == np.float16
        assert np.array_equal(vector, wanted[name].astype(np.float16))
    assert any(not np.allclose(first[name], second[name], atol=1e-2) for name in second)


def test_embeddings_are_inputs_of_another_run(titles: Path, run_of: Run, tmp_path: Path) -> None:
    """Prepared, joined by id, predicted and scored: titles beside sight; a video without a title has zeros."""
    embed(titles)
    joined = [{"path": str(titles), "name": "title_vector", "size": SIZE, "cache": str(tmp_path)}]
    model = {"name": "moe", "inputs": ["mean_rgb", "keywords", "title_vector"]}
    fused = untrained(run_of("fused", model, joined=joined))
    info = run_folder.read_info(fused)
    folder = prepare(run_folder.read_run(fused))
    for split in ("train", "val", "test"):
        titles_of = stored(titles, split)
        columns = ("id", "title_vector", "has_title_vector", "has_title")
        rows = SplitReader(folder, info.split(split), columns).take(np.arange(info.split(split).rows))
        for name, vector, there in zip(
            rows.column("id").to_pylist(), tensor_column(rows, "title_vector"),
            rows.column("has_title_vector").to_pylist(), strict=True,
        ):  # fmt: skip
            assert there == (name in titles_of)
            assert np.array_equal(vector, titles_of.get(name, np.zeros(SIZE)))
        assert rows.column("has_title_vector").equals(rows.column("has_title"))
    task = build(run_folder.read_run(fused), info)
    assert task.build_model().weight.shape[2] == 8 + 16 + SIZE + 2  # type: ignore[index]
    predictions, data = predict(fused, "test")
    assert data == folder
    scored = evaluate(fused, predictions.name, data)
    assert 0 < scored["metrics"]["gap"] < 1
    assert set(scored["common_words"]) == {"title_words", "keyword_words"}


def test_a_run_of_embeddings_alone(titles: Path, run_of: Run, tmp_path: Path) -> None:
    embed(titles)
    values = run_of("alone", {"name": "logistic"}).to_dict()
    joined = [{"path": str(titles), "name": "title", "cache": str(tmp_path)}]
    values["dataset"] = {"name": "embeddings", "path": str(titles), "joined": joined}
    alone = untrained(config.from_dict(values))
    assert run_folder.read_info(alone).split("val").rows == len(stored(titles, "val"))
    predictions, data = predict(alone, "val")
    assert evaluate(alone, predictions.name, data)["rows"] == len(stored(titles, "val"))


def test_sound_is_embedded_by_the_same_verb(tmp_path: Path) -> None:
    """Any task whose model has an embedding: segments of sound, with the recordings that they are of."""
    made = music_emotion.Config(num_tracks=12, minutes=0.1, length_spread=0)
    music_emotion.generate(tmp_path / "corpus", made, lambda done, total: None)
    features = {"mfcc": 8, "contrast_bands": 0, "n_fft": 1024, "hop": 512}
    split = {"by": "track", "fractions": {"train": 0.5, "val": 0.25, "test": 0.25}}
    dataset = {"name": "audio_folder", "path": str(tmp_path / "corpus"), "segment_s": 2, "hop_s": 2, "tail": "drop"}
    run = config.from_dict(
        {
            "name": "sound", "out": str(tmp_path / "runs"), "task": "audio_classification",
            "dataset": dataset | {"features": features, "split": split},
            "model": {"name": "audio_cnn", "channels": [4]}, "prepare": {"out": str(tmp_path / "prepared")},
        }
    )  # fmt: skip
    run_dir = untrained(run)
    embed(run_dir)
    (table,) = read_tables(splits_of(run_dir)["test"], ["id", "group", "labels", "embedding"])
    folder, info = prepare(run), run_folder.read_info(run_dir)
    task, model = build(run, info), build(run, info).build_model()
    checkpoint.load_model(checkpoint.folder_of(run_dir, 1), model)
    reader = SplitReader(folder, info.split("test"), task.columns(labelled=False))
    rows = reader.take(np.arange(info.split("test").rows))
    batch = task.collate(rows)
    lengths = batch.tensors["offsets"].diff()
    assert len(set(lengths.tolist())) == 1
    x = batch.tensors["features"].float().view(len(lengths), int(lengths[0]), -1)
    with torch.no_grad():
        wanted = model.eval().embed(x, lengths)  # type: ignore[operator]
    torch.testing.assert_close(torch.tensor(tensor_column(table, "embedding")), wanted, rtol=1e-4, atol=1e-5)
    assert table.column("id").to_pylist() == rows.column("id").to_pylist()
    assert all(name.startswith(f"{group}@") for name, group in table.select(["id", "group"]).to_pandas().values)


def test_what_has_no_embedding_says_so(run_of: Run) -> None:
    run_dir = untrained(run_of("plain", {"name": "logistic", "inputs": ["mean_rgb"]}))
    with pytest.raises(ValueError, match=r"model.name=logistic has no embedding: its classifier reads the inputs"):
        embed(run_dir)
    assert not (run_dir / embeddings.FOLDER).exists()
