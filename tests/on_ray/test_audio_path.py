"""Classes of sound from corpus to report, on one shared Ray: prepare, train, predict, evaluate, and single files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray import config, predictions, prepared
from mmray.datasets.synthetic import music_emotion
from mmray.evaluation import evaluate
from mmray.features import audio
from mmray.features.audio_features import Extractor
from mmray.on_ray.predict import predict, predict_files
from mmray.on_ray.prepare import prepare
from mmray.on_ray.train import train
from mmray.prepared import SplitReader
from mmray.reporting.page import write_report
from mmray.tasks import build
from mmray.training import checkpoint
from mmray.training.run_folder import read_log

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]

NUM_TRACKS = 12
CLASSES = ["Angry", "Happy", "Sad"]
FEATURES = {"mfcc": 8, "contrast_bands": 0, "n_fft": 1024, "hop": 512}
Make = Callable[..., config.Run]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 recordings of 12 s, four a class: two to train on, one to validate, one to test."""
    out = tmp_path_factory.mktemp("corpus")
    music_emotion.generate(
        out, music_emotion.Config(num_tracks=NUM_TRACKS, minutes=0.2, length_spread=0), lambda done, total: None
    )
    return out


@pytest.fixture(scope="module")
def sections(corpus: Path) -> dict[str, Any]:
    """Segments of 2 s of the corpus."""
    return {
        "task": {"name": "audio_classification"},
        "dataset": {
            "name": "audio_folder",
            "path": str(corpus),
            "segment_s": 2,
            "hop_s": 2,
            "tail": "drop",
            "features": FEATURES,
            "augment": {"copies": 1, "pitch_shift_semitones": [-2, 2]},
            "split": {"by": "track", "fractions": {"train": 0.5, "val": 0.25, "test": 0.25}},
        },
        "model": {"name": "audio_cnn_gru", "channels": [8, 8], "hidden_size": 8, "dropout": 0.0},
        "prepare": {"part_mb": 4},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "log_every_steps": 1, "optimizer": {"lr": 0.005}},
    }


def rows_of(folder: Path, split: str, *columns: str) -> list[dict[str, Any]]:
    info = prepared.read_info(folder).split(split)
    rows: list[dict[str, Any]] = SplitReader(folder, info, columns).take(np.arange(info.rows)).to_pylist()
    return rows


def curve(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in read_log(run_dir) if line["event"] == "step"]


def best_model(make: Make, run_dir: Path) -> torch.nn.Module:
    task = build(make("two"), prepared.read_info(prepare(make("two"))))
    model = task.build_model().eval()
    checkpoint.load_model(
        checkpoint.folder_of(run_dir, checkpoint.best(run_dir, task.monitor, task.maximise).step), model
    )
    return model


def test_prepared_rows_are_the_segments_of_the_files_with_copies_for_training_alone(
    make: Make, corpus: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(make("any"))
    said = capsys.readouterr()
    assert "split by track (seed 0), train / val / test: wanted 50.0 / 25.0 / 25.0 %" in said.out + said.err
    info = prepared.read_info(folder)
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 72, "val": 18, "test": 18}
    assert info.class_names == CLASSES
    assert info.splits["train"].label_counts == [24, 24, 24]
    groups: dict[str, str] = {}
    for split in info.splits:
        for row in rows_of(folder, split, "id", "group", "start_s", "labels", "features"):
            assert groups.setdefault(row["group"], split) == split
            assert CLASSES[row["labels"][0]] == row["group"].split("/")[0]
            copied = row["id"].endswith("~1")
            assert split == "train" or not copied
            if not copied:
                start = round(row["start_s"] * 16000)
                samples = audio.read_span(corpus / f"{row['group']}.flac", 16000, start, start + 32000)
                expected = Extractor(make("any").dataset.features)(samples)  # type: ignore[attr-defined]
                np.testing.assert_array_equal(np.frombuffer(row["features"], np.float32), expected.ravel())
    assert len(groups) == NUM_TRACKS


def test_two_workers_give_the_curve_of_one(make: Make, trained: Path) -> None:
    """One worker that takes each step in two halves: features are then standardised over the same segments."""
    alone = train(make("one", train={"accumulate": 2}))
    assert len(curve(trained)) == 9
    np.testing.assert_allclose(curve(alone), curve(trained), rtol=1e-4)
    both = [checkpoint.last(run_dir) for run_dir in (trained, alone)]
    assert [state.step for state in both if state] == [9, 9]
    assert all(state.metrics["val_rows"] == 18 for state in both if state)


def test_scores_are_those_of_the_model_on_every_test_segment(make: Make, trained: Path, scored: dict[str, Any]) -> None:
    model = best_model(make, trained)
    segments = rows_of(prepare(make("two")), "test", "id", "labels", "features")
    stored = {
        row["id"]: row
        for table in predictions.read_tables(trained / "predictions" / "test")
        for row in table.to_pylist()
    }
    assert sorted(stored) == sorted(row["id"] for row in segments)
    right = []
    for row in segments:
        x = torch.from_numpy(np.frombuffer(row["features"], np.float32).reshape(1, -1, 8).copy())
        with torch.inference_mode():
            p = model(x, torch.tensor([x.shape[1]]))[0].softmax(0).numpy()
        np.testing.assert_allclose(stored[row["id"]]["scores"], p, atol=1e-5)
        right.append(p.argmax() == row["labels"][0])
    assert scored["metrics"]["weighted_accuracy"] == pytest.approx(np.mean(right))
    assert scored["rows"] == 18
    assert len(scored["tracks"]) == 3
    assert scored["leak"] == {"split_by": "track", "segments": 18, "sharing_a_track_with_train": 0}


def test_the_report_draws_features_confusions_and_recordings(
    trained: Path, scored: dict[str, Any], tmp_path: Path
) -> None:
    page = write_report([trained], tmp_path / "report").read_text()
    for pattern, count in (("features_*.png", 3), ("confusion_*.png", 1), ("timeline_*.png", 3)):
        assert len(list((tmp_path / "report").glob(pattern))) == count, pattern
    assert all(track["group"] in page for track in scored["tracks"])


def test_the_paper_s_protocol_says_that_it_leaks(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And stored sound, changed anew in every epoch, gives a picture of its changes."""
    changes = {"pitch_shift_semitones": [2], "time_stretch_rates": [0.8]}
    by = {"split": {"by": "segment", "fractions": {"train": 0.5, "val": 0.25, "test": 0.25}}, "store": "audio"}
    leaking = make("leaking", dataset=by | {"augment": {"copies": 0}}, task={"augment": changes})
    run_dir = train(leaking)
    said = capsys.readouterr()
    assert "this split leaks: " in said.out + said.err
    folder, data = predict(run_dir, "test")
    leak = evaluate(run_dir, folder.name, data)["leak"]
    info = prepared.read_info(data)
    shared = set(info.splits["train"].groups or [])
    test = rows_of(data, "test", "group")
    assert leak == {
        "split_by": "segment",
        "segments": info.splits["test"].rows,
        "sharing_a_track_with_train": sum(row["group"] in shared for row in test),
    }
    assert leak["sharing_a_track_with_train"] > 0
    page = write_report([run_dir], tmp_path / "report").read_text()
    assert len(list((tmp_path / "report").glob("augmentation_*.png"))) == 1
    assert "<h2>Augmentation</h2>" in page


def test_files_get_their_classes_and_timelines(make: Make, corpus: Path, trained: Path, tmp_path: Path) -> None:
    songs = tmp_path / "songs"
    songs.mkdir()
    for name in ("Angry/angry_01", "Sad/sad_02"):
        shutil.copy(corpus / f"{name}.flac", songs)
    written = predict_files(trained, str(songs), tmp_path / "out", ["timeline"])
    assert sorted(path.name for path in written) == [
        "angry_01.classes.csv", "angry_01.timeline.csv", "sad_02.classes.csv", "sad_02.timeline.csv"
    ]  # fmt: skip
    header, row = list(csv.reader((tmp_path / "out" / "sad_02.classes.csv").open()))
    assert header == ["file", "predicted", *CLASSES]
    values = np.array(row[2:], float)
    assert (row[0], row[1]) == ("sad_02.flac", CLASSES[int(values.argmax())])
    assert values.sum() == pytest.approx(1, abs=1e-5)
    _, *lines = list(csv.reader((tmp_path / "out" / "sad_02.timeline.csv").open()))
    assert [float(line[0]) for line in lines] == list(range(12))
    whole = audio.read_span(songs / "sad_02.flac", 16000, 4 * 16000, 6 * 16000)
    x = torch.from_numpy(Extractor(make("any").dataset.features)(whole))[None]  # type: ignore[attr-defined]
    with torch.inference_mode():
        p = best_model(make, trained)(x, torch.tensor([x.shape[1]]))[0].softmax(0).numpy()
    np.testing.assert_allclose(np.array(lines[5][2:], float), p, atol=1e-4)


def test_another_corpus_keeps_the_classes_of_the_run(corpus: Path, trained: Path, tmp_path: Path) -> None:
    """It has only one of them: class 2 is still Sad."""
    shutil.copytree(corpus / "Sad", tmp_path / "more" / "Sad")
    folder, data = predict(trained, corpus=str(tmp_path / "more"))
    result = evaluate(trained, folder.name, data)
    assert result["rows"] == 24
    assert [sum(of_row) for of_row in result["confusion"]] == [0, 0, 24]
    saved = json.loads((trained / "evaluation" / f"{folder.name}.json").read_text())
    assert saved["metrics"] == result["metrics"]
