"""Singing melody from a corpus to a report, on one shared Ray: prepare, train, predict, evaluate, and single files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mir_eval
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mmray import config, predictions, prepared
from mmray.datasets.synthetic import mir1k
from mmray.evaluation import evaluate
from mmray.on_ray.predict import _over, predict, predict_files
from mmray.on_ray.prepare import prepare
from mmray.on_ray.train import train
from mmray.preparation import plan
from mmray.prepared import SplitReader
from mmray.reporting.page import write_report
from mmray.schema import DatasetInfo
from mmray.tasks import build
from mmray.training import checkpoint
from mmray.training.run_folder import read_log

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]

NUM_CLIPS = 29
CFP = {"bins_per_octave": 15, "min_hz": 80.0, "max_hz": 1250.0, "hop": 512}
HOP_S = 512 / 16000
Make = Callable[..., config.Run]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """29 clips of a second: 20 to train on, 3 to validate, 6 to test."""
    out = tmp_path_factory.mktemp("corpus")
    made = mir1k.Config(num_clips=NUM_CLIPS, min_clip_s=1.0, max_clip_s=1.0, clips_per_song=1)
    mir1k.generate(out, made, lambda done, total: None)
    return out


@pytest.fixture(scope="module")
def sections(corpus: Path) -> dict[str, Any]:
    """A union of the corpus alone.

    Clips are cropped to more than they have, and each is normalised by its own statistics when it is evaluated: what a
    step sees is the same in any process.
    """
    return {
        "task": {"name": "melody_extraction", "crop_frames": 100},
        "dataset": {"name": "union", "corpora": [{"name": "mir1k", "path": str(corpus), "cfp": CFP}]},
        "model": {"name": "dense_aspp", "growth": 4, "dilations": [1, 2, 4], "batch_statistics": "clip"},
        "prepare": {"part_mb": 1},
        "train": {"epochs": 1, "batch_size": 4, "precision": "fp32", "log_every_steps": 1, "optimizer": {"lr": 0.01}},
    }


def stored_rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for table in predictions.read_tables(folder) for row in table.to_pylist()}


def curve(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in read_log(run_dir) if line["event"] == "step"]


def labels_of(corpus: Path, id: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and pitches in Hz of a clip, from its file of MIDI pitches."""
    corpus_name, name = id.split("/")
    assert corpus_name == "mir1k"
    midi = np.loadtxt(corpus / "PitchLabel" / f"{name}.pv")
    return 0.01 + 0.02 * np.arange(len(midi)), np.where(midi > 0, 440 * 2 ** ((midi - 69) / 12), 0)


def rows_of(folder: Path, split: str, *columns: str) -> list[dict[str, Any]]:
    info = prepared.read_info(folder).split(split)
    rows: list[dict[str, Any]] = SplitReader(folder, info, columns).take(np.arange(info.rows)).to_pylist()
    return rows


def test_prepared_rows_are_the_clips_with_the_labels_of_their_files(make: Make, corpus: Path, trained: Path) -> None:
    folder = prepare(make("any"))
    info = prepared.read_info(folder)
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 20, "val": 3, "test": 6}
    assert info.rows_in == info.rows_out == sum(split.labelled_rows for split in info.splits.values()) == NUM_CLIPS
    names, groups = set(), {}
    for split in info.splits:
        for row in rows_of(folder, split, "id", "group", "num_frames", "ref_times_s", "ref_f0_hz"):
            times_s, f0_hz = labels_of(corpus, row["id"])
            np.testing.assert_allclose(row["ref_times_s"], times_s)
            np.testing.assert_allclose(row["ref_f0_hz"], f0_hz)
            assert row["num_frames"] == 31
            names.add(row["id"])
            assert groups.setdefault(row["group"], split) == split
    assert names == {f"mir1k/{path.stem}" for path in (corpus / "Wavfile").iterdir()}


def test_two_workers_give_the_curve_of_one(make: Make, trained: Path) -> None:
    """One worker that takes each step in two halves: batch norm then normalises by the same clips."""
    alone = train(make("one", train={"accumulate": 2}))
    assert len(curve(trained)) == 5
    np.testing.assert_allclose(curve(alone), curve(trained), rtol=1e-4)
    assert curve(trained)[-1] < curve(trained)[0]
    both = [checkpoint.last(run_dir) for run_dir in (trained, alone)]
    assert [state.step for state in both if state] == [5, 5]
    for name in ("val/loss", "val/overall_accuracy", "val/raw_pitch_accuracy", "val/voicing_recall"):
        ours, reference = (state.metrics[name] for state in both if state)
        assert ours == pytest.approx(reference, abs=0.02), name
    assert all(state.metrics["val_rows"] == 3 for state in both if state)


def test_predictions_are_what_the_model_says_of_each_clip(make: Make, trained: Path, scored: dict[str, Any]) -> None:
    run = make("two")
    data = prepare(run)
    info = prepared.read_info(data)
    task = build(run, info)
    model = task.build_model().eval()
    best = checkpoint.best(trained, task.monitor, task.maximise)
    checkpoint.load_model(checkpoint.folder_of(trained, best.step), model)
    clips = rows_of(data, "test", "id", "cfp")
    rows = stored_rows(trained / "predictions" / "test")
    assert list(rows) == [row["id"] for row in clips]
    pitches_hz = np.concatenate([[0], 80 * 2 ** (np.arange(1, 1 + len(task.settings.pitches_hz())) / 15)])
    for row in clips:
        clip = np.frombuffer(row["cfp"], np.float16).reshape(31, 3, -1).astype(np.float32)
        with torch.inference_mode():
            p = model(torch.from_numpy(clip).permute(1, 2, 0)[None])[0].softmax(0).T.numpy()
        found = rows[row["id"]]
        np.testing.assert_allclose(found["confidence"], 1 - p[:, 0], atol=1e-5)
        clear = np.diff(np.sort(p, axis=1)[:, -2:])[:, 0] > 1e-4
        np.testing.assert_allclose(np.array(found["est_f0_hz"])[clear], pitches_hz[p.argmax(axis=1)][clear])
        assert clear.mean() > 0.9


def test_scores_are_mir_eval_s_of_the_corpus_s_own_labels(corpus: Path, trained: Path, scored: dict[str, Any]) -> None:
    clips = {}
    for name, row in stored_rows(trained / "predictions" / "test").items():
        frames_s = HOP_S * np.arange(1, 32)
        clips[name] = mir_eval.melody.evaluate(*labels_of(corpus, name), frames_s, np.array(row["est_f0_hz"]))
    assert (scored["rows"], scored["rows_with_labels"], scored["split"]) == (6, 6, "test")
    assert [clip["id"] for clip in scored["per_clip"]] == sorted(clips)
    for name, value in scored["metrics"].items():
        title = name.replace("_", " ").title()
        assert value == pytest.approx(np.mean([clip[title] for clip in clips.values()]), abs=1e-9), name
    assert scored["baselines"]["no melody anywhere"]["voicing_recall"] == 0


def test_the_report_draws_the_clips_that_are_kept(
    make: Make, trained: Path, scored: dict[str, Any], tmp_path: Path
) -> None:
    path = trained / "evaluation" / "test.examples.parquet"
    examples = pq.read_table(path).to_pylist()
    ranked = sorted(scored["per_clip"], key=lambda clip: -clip["overall_accuracy"])
    assert [row["id"] for row in examples] == [ranked[place]["id"] for place in (0, 3, 5)]
    maps = {row["id"]: row["cfp"] for row in rows_of(prepare(make("two")), "test", "id", "cfp")}
    rows = stored_rows(trained / "predictions" / "test")
    for row in examples:
        assert row["cfp"] == maps[row["id"]]
        assert row["est_f0_hz"] == rows[row["id"]]["est_f0_hz"]
    page = write_report([trained], tmp_path / "report").read_text()
    assert 'id="comparison-test"' in page
    assert all(row["id"] in page for row in scored["per_clip"])
    assert len(list((tmp_path / "report").glob("contour_*.png"))) == 3


def read_table(path: Path) -> np.ndarray:
    """Columns time, pitch, confidence of a table of `predict_files`: (3, T)."""
    return np.loadtxt(path, delimiter=",", comments="#", ndmin=2).T


def test_a_file_and_another_corpus_give_what_the_test_split_gave(
    make: Make, corpus: Path, trained: Path, scored: dict[str, Any], tmp_path: Path
) -> None:
    """The feature of a file isn't rounded to float16: a pitch may differ where two are as likely."""
    rows = {id.split("/")[1]: row for id, row in stored_rows(trained / "predictions" / "test").items()}
    first, second = sorted(rows)[:2]
    (table,) = predict_files(trained, str(corpus / "Wavfile" / f"{first}.wav"), tmp_path / "song.csv")
    times_s, f0_hz, confidence = read_table(table)
    np.testing.assert_allclose(times_s, HOP_S * np.arange(1, 32), atol=1e-6)
    np.testing.assert_allclose(confidence, rows[first]["confidence"], atol=0.02)
    assert np.mean(np.abs(f0_hz - rows[first]["est_f0_hz"]) < 1e-3) > 0.9

    songs = tmp_path / "songs"
    songs.mkdir()
    for name in (first, second):
        shutil.copy(corpus / "Wavfile" / f"{name}.wav", songs)
        shutil.copy(corpus / "PitchLabel" / f"{name}.pv", songs)
    folder, data = predict(trained, corpus=f"melody_folder={songs}")
    assert folder.name == "melody_folder"
    assert prepared.read_info(data).column("cfp") == prepared.read_info(prepare(make("two"))).column("cfp")
    again = stored_rows(folder)
    assert list(again) == [first, second]
    for name, row in again.items():
        np.testing.assert_allclose(row["confidence"], rows[name]["confidence"], atol=1e-6)
    result = evaluate(trained, "melody_folder", data)
    expected = [clip for clip in scored["per_clip"] if clip["id"].split("/")[1] in again]
    for name, value in result["metrics"].items():
        assert value == pytest.approx(np.mean([clip[name] for clip in expected]), abs=1e-9)
    with pytest.raises(ValueError, match=r"'union' has no single path; give <dataset>=<path>"):
        predict(trained, corpus=str(songs))


def test_another_corpus_is_read_without_the_copies_to_train_on(make: Make, corpus: Path) -> None:
    remixed = {"name": "mir1k", "path": "elsewhere", "cfp": CFP, "mix": "sum", "remix": {"copies": 2}}
    run = config.from_dict(make("remixed").to_dict() | {"dataset": remixed})
    info = DatasetInfo.model_construct(class_names=[])
    for given, by in ((f"mir1k={corpus}", "corpus"), (str(corpus), "none")):
        over = _over(run, given, info)
        assert over.prepare.split.by == by
        dataset: Any = over.dataset
        assert (dataset.path, dataset.mix, dataset.remix.copies) == (str(corpus), "sum", 0)
        assert dataset.cfp == run.dataset.cfp  # type: ignore[attr-defined]
        plan(over)


def test_a_folder_of_files_is_done_but_for_the_broken_one_which_is_named(
    corpus: Path, trained: Path, tmp_path: Path
) -> None:
    songs = tmp_path / "songs"
    (songs / "album").mkdir(parents=True)
    sounds = sorted((corpus / "Wavfile").iterdir())[:2]
    shutil.copy(sounds[0], songs / "good.wav")
    shutil.copy(sounds[1], songs / "album" / "better.wav")
    (songs / "broken.wav").write_bytes(b"RIFF, and nothing behind it")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"1 of 3 files could not be predicted:\n  .*broken\.wav") as caught:
        predict_files(trained, str(songs), out, ["midi"])
    assert "good" not in str(caught.value)
    assert "better" not in str(caught.value)
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ["album/better.melody.csv", "album/better.melody.mid", "good.melody.csv", "good.melody.mid"]
    assert written == names
    assert read_table(out / "good.melody.csv").shape == (3, 31)


def test_a_lone_broken_file_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF, and nothing behind it")
    with pytest.raises(ValueError, match=r"1 of 1 files could not be predicted:\n  .*broken\.wav"):
        predict_files(trained, str(tmp_path / "broken.wav"), None)
    assert not (trained / "predictions" / "files").exists()
