"""Prepare, train, predict and evaluate on one shared Ray: rows exact, curves equal, errors clear."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmray import class_scores, config, evaluation, predictions, prepared
from mmray.datasets.synthetic import youtube8m
from mmray.metrics.ranking import RankingMetrics
from mmray.on_ray.predict import predict
from mmray.on_ray.prepare import prepare
from mmray.on_ray.train import train
from mmray.preparation import BadInputError
from mmray.prepared import SplitReader
from mmray.tasks import build
from mmray.training import checkpoint, feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit
from mmray.training.run_folder import read_log

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]
NUM_VIDEOS = 1201


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic corpus of 1,201 videos, in several shards a split."""
    out = tmp_path_factory.mktemp("corpus")
    made = youtube8m.Config(num_videos=NUM_VIDEOS, num_classes=12, rgb_size=24, audio_size=8, videos_per_shard=150)
    youtube8m.generate(out, made, lambda done, total: None)
    return out


@pytest.fixture(scope="module")
def sections(corpus: Path) -> dict[str, Any]:
    """A small mixture of experts over the corpus."""
    return {
        "task": "video_classification",
        "dataset": {
            "name": "youtube8m",
            "path": str(corpus),
            "level": "video",
            "num_classes": 12,
            "features": {"mean_rgb": 24, "mean_audio": 8},
        },
        "model": {"name": "moe", "num_experts": 2},
        "prepare": {"part_mb": 1},
        "train": {"epochs": 2, "batch_size": 50, "precision": "fp32", "log_every_steps": 4, "clip_norm": 1.0},
    }


def curve(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in read_log(run_dir)]


def test_prepared_rows_are_the_corpus(make: Callable[..., config.Run], trained: Path) -> None:
    folder = prepare(make("any"))
    info = prepared.read_info(folder)
    assert info.rows_in == info.rows_out == NUM_VIDEOS
    names = []
    for split in info.splits.values():
        for table in SplitReader(folder, split, ("id",)).batches(0, split.rows, 100):
            names += table.column("id").to_pylist()
    assert len(set(names)) == NUM_VIDEOS


def test_bad_input_of_a_task_is_named(make: Callable[..., config.Run]) -> None:
    with pytest.raises(BadInputError, match=r"tfrecord, record \d+, byte \d+: .*num_classes"):
        prepare(make("any", dataset={"num_classes": 4}))


def test_two_workers_give_the_curve_of_one_process(make: Callable[..., config.Run], trained: Path) -> None:
    """One process without Ray is the reference; clipping makes the curve depend on all gradients at once."""
    run = make("plain")
    folder = prepare(run)
    info = prepared.read_info(folder)
    context = Context(run_folder.open_run(run, info))
    task = build(run, info)
    fit(run, task, *feed.tables(run, task, folder, context), context)
    np.testing.assert_allclose(curve(trained), curve(run.run_dir), rtol=1e-4)
    ours, reference = checkpoint.last(trained), checkpoint.last(run.run_dir)
    assert ours is not None
    assert reference is not None
    assert ours.step == reference.step
    assert ours.metrics["val_rows"] == info.split("val").rows
    assert ours.metrics["val/gap"] == pytest.approx(reference.metrics["val/gap"], abs=1e-3)


def test_ray_data_feed_gives_the_very_same_curve(make: Callable[..., config.Run], trained: Path) -> None:
    fed = train(make("fed", resources={"num_workers": 2, "feed": "ray_data"}, train={"shuffle_mb": 0.03}))
    thread = train(make("thread", resources={"num_workers": 2}, train={"shuffle_mb": 0.03}))
    np.testing.assert_array_equal(curve(fed), curve(thread))


def test_finished_run_is_left_alone(
    make: Callable[..., config.Run], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    train(make("two", resources={"num_workers": 2}))
    assert "is finished already" in capsys.readouterr().out
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_error_in_a_worker_reaches_the_caller(make: Callable[..., config.Run]) -> None:
    run = make("nan", train={"optimizer": {"name": "sgd", "lr": 1e38}}, resources={"max_failures": 0})
    with pytest.raises(FloatingPointError, match=r"train/loss became .*lower train\.optimizer\.lr"):
        train(run)


def test_predictions_hold_every_row_once_and_their_true_scores(make: Callable[..., config.Run], trained: Path) -> None:
    folder, _ = predict(trained, "test")
    run = make("two")
    data = prepare(run)
    info = prepared.read_info(data)
    task = build(run, info)
    model = task.build_model().eval()
    best = checkpoint.best(trained, "val/gap", maximise=True)
    checkpoint.load_model(checkpoint.folder_of(trained, best.step), model)
    reader = SplitReader(data, info.split("test"), ("id", "labels", *task.columns(labelled=False)))
    (table,) = reader.batches(0, info.split("test").rows, 10**6)
    batch = task.collate(table)
    scores = task.evaluate(model, batch)[0].detach().numpy()
    stored = [row for t in predictions.read_tables(folder) for row in t.to_pylist()]
    assert [row["id"] for row in stored] == table.column("id").to_pylist()
    for row, expected in zip(stored, scores, strict=True):
        np.testing.assert_allclose(row["top_scores"], expected[row["top_classes"]], rtol=1e-4, atol=1e-6)
    metrics = RankingMetrics(12)
    metrics.update(scores, prepared.ragged_column(table, "labels"))
    result = evaluation.evaluate(trained, "test")
    assert result["metrics"] == pytest.approx(metrics.compute(), abs=1e-4)
    assert result["rows"] == info.split("test").rows
    assert result["metrics"]["gap"] > result["baselines"]["prior"]["gap"]
    assert json.loads((trained / "evaluation" / "test.json").read_text()) == result


def test_new_files_are_predicted_without_labels_or_splits(trained: Path, tmp_path: Path) -> None:
    made = youtube8m.Config(
        num_videos=90, num_classes=12, rgb_size=24, audio_size=8, seed=5, train_fraction=0.01, val_fraction=0.0,
        test_labels=False, videos_per_shard=40,
    )  # fmt: skip
    youtube8m.generate(tmp_path, made, lambda done, total: None)
    folder, _ = predict(trained, corpus=str(tmp_path / "test*.tfrecord"))
    info = predictions.read_info(folder)
    assert not info.labelled
    csv = tmp_path / "submission.csv"
    assert class_scores.write_challenge_csv(folder, csv) == info.rows > 80
    lines = csv.read_text().splitlines()
    assert lines[0] == "VideoId,LabelConfidencePairs"
    pairs = lines[1].split(",")[1].split(" ")
    assert sorted(int(c) for c in pairs[::2]) == list(range(12))
    assert [float(s) for s in pairs[1::2]] == sorted((float(s) for s in pairs[1::2]), reverse=True)
    with pytest.raises(ValueError, match="predictions without labels"):
        class_scores.ranking_metrics(folder, 12)


def test_stale_predictions_are_made_again(make: Callable[..., config.Run], capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = train(make("longer", train={"epochs": 1}))
    first = predictions.read_info(predict(run_dir, "val")[0])
    predict(run_dir, "val")
    assert "are there" in capsys.readouterr().out
    train(make("longer", train={"epochs": 3}))
    assert predictions.read_info(predict(run_dir, "val")[0]).step > first.step


def test_killed_worker_is_replaced_and_leaves_no_trace(make: Callable[..., config.Run], trained: Path) -> None:
    """SIGKILL in the second epoch; the curve is that of the undisturbed run."""
    run = make("killed", resources={"num_workers": 2}, train={"checkpoint_every_steps": 3})

    def kill_when_it_trains() -> None:
        while not any(line["epoch"] == 1 for line in read_log(run.run_dir)):
            time.sleep(0.02)
        os.kill(next(iter(_train_workers())), signal.SIGKILL)

    killer = threading.Thread(target=kill_when_it_trains, daemon=True)
    killer.start()
    train(run)
    killer.join()
    np.testing.assert_allclose(curve(run.run_dir), curve(trained), rtol=1e-6)


def _train_workers() -> list[int]:
    """Ray Train workers among the processes that this one's Ray started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = (folder / "environ").read_bytes().find(f"MMRAY_TEST_SESSION={os.getpid()}".encode()) >= 0
            if mine and b"RayTrainWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile, or is someone else's
            continue
    return found
