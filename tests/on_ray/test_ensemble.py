"""Runs combined on one shared Ray: from trained models to the ensemble's page; killed half-way and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from reporting.run_folders import Reader
from safetensors.numpy import load_file

from mmray import class_scores, config, predictions, preparation
from mmray.cli import cli
from mmray.datasets.synthetic import youtube8m
from mmray.ensembling.inputs import Inputs
from mmray.evaluation import evaluate
from mmray.files import write_json
from mmray.on_ray.ensemble import make
from mmray.on_ray.predict import predict, predict_files
from mmray.on_ray.up import processes_of
from mmray.prepared import SplitReader, tensor_column
from mmray.reporting.page import write_report
from mmray.tasks import build
from mmray.training import checkpoint, feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_runtime")]
NUM_CLASSES = 12
FEATURES = {"mean_rgb": 24, "mean_audio": 8}
MEMBERS: dict[str, dict[str, Any]] = {
    "moe": {"name": "moe", "num_experts": 2},
    "rgb": {"name": "logistic", "inputs": ["mean_rgb"]},
    "audio": {"name": "logistic", "inputs": ["mean_audio"]},
}


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Train a model on a corpus of 700 videos that all models share, in this process; return its run folder."""
    root = tmp_path_factory.mktemp("ensembles")
    made = youtube8m.Config(num_videos=700, num_classes=NUM_CLASSES, rgb_size=24, audio_size=8, videos_per_shard=100)
    youtube8m.generate(root / "corpus", made, lambda done, total: None)

    def trained(name: str, model: dict[str, Any], seed: int = 0) -> Path:
        run = config.from_dict(
            {
                "name": name, "out": str(root / "runs"), "seed": seed, "task": "video_classification",
                "dataset": {
                    "name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": NUM_CLASSES,
                    "features": FEATURES,
                },
                "model": model, "prepare": {"out": str(root / "prepared")},
                "train": {"epochs": 4, "batch_size": 50, "precision": "fp32", "optimizer": {"lr": 0.02}},
            }
        )  # fmt: skip
        plan = preparation.plan(run)
        if not plan.folder.exists():
            preparation.publish(plan, [preparation.write_part(run, part, plan.aside) for part in plan.parts])
        info = json.loads((plan.folder / "dataset.json").read_text())
        context = Context(run_folder.open_run(run, run_folder.DatasetInfo.model_validate(info)))
        task = build(run, run_folder.read_info(run.run_dir))
        fit(run, task, *feed.tables(run, task, plan.folder, context), context)
        return run.run_dir

    return trained


def predict_here(run_dir: Path, split: str) -> None:
    """What `predict` leaves, made in this process: it needs no new one to load the model in."""
    run, info = run_folder.read_run(run_dir), run_folder.read_info(run_dir)
    task = build(run, info)
    state = checkpoint.best(run_dir, task.monitor, task.maximise)
    model = task.build_model().eval()
    checkpoint.load_model(checkpoint.folder_of(run_dir, state.step), model)
    reader = SplitReader(Path(run.prepare.out) / info.id, info.split(split), ("id", *task.columns(labelled=True)))
    (rows,) = reader.batches(0, info.split(split).rows, 10_000)
    columns = task.prediction_columns(info.split(split))
    folder = run_dir / "predictions" / split
    folder.mkdir(parents=True)
    with torch.inference_mode(), predictions.open_writer(folder / "part-00000.parquet", columns) as writer:
        scores, _ = task.evaluate(model, task.collate(rows.select(task.columns(labelled=False))))
        writer.write_table(task.predictions(columns, rows, scores))
    made = predictions.PredictionsInfo(
        run=run.name, dataset=info.id, split=split, step=state.step, rows=rows.num_rows, labelled=True, columns=columns
    )
    write_json(folder / "predictions.json", made.model_dump(mode="json"))


@pytest.fixture(scope="module")
def members(train: Callable[..., Path]) -> list[Path]:
    """Three trained runs, of which one has not predicted test yet."""
    runs = [train(name, model, seed) for seed, (name, model) in enumerate(MEMBERS.items())]
    for run in runs:
        predict_here(run, "val")
        if run.name != "audio":
            predict_here(run, "test")
    return runs


def combine(members: list[Path], method: str, split: str = "test", **settings: Any) -> tuple[Path, dict[str, Any]]:
    out = make(members, members[0].parent / f"all-{method}", {"method": method, **settings})
    folder, data = predict(out, split)
    return folder, evaluate(out, folder.name, data)


def stored(folder: Path) -> pa.Table:
    return pa.concat_tables(predictions.read_tables(folder))


def naive_mean(folders: list[Path]) -> dict[str, np.ndarray]:
    """Of each id the mean of the dense scores, by dictionaries."""
    total: dict[str, np.ndarray] = {}
    for folder in folders:
        for row in stored(folder).to_pylist():
            scores = total.setdefault(row["id"], np.zeros(NUM_CLASSES))
            scores[row["top_classes"]] += np.asarray(row["top_scores"]) / len(folders)
    return total


def test_mean_is_the_naive_mean_and_is_scored_and_shown_like_a_run(members: list[Path], tmp_path: Path) -> None:
    folder, result = combine(members, "mean")
    table = stored(folder)
    expected = naive_mean([run / "predictions" / "test" for run in members])
    assert set(table.column("id").to_pylist()) == set(expected)
    classes, scores = tensor_column(table, "top_classes"), tensor_column(table, "top_scores")
    for name, of_row, values in zip(table.column("id").to_pylist(), classes, scores, strict=True):
        np.testing.assert_allclose(values, expected[name][of_row], atol=1e-6)
        assert (np.diff(values) <= 0).all()
    assert result["checkpoint"] == "mean of 3 runs"
    assert result["metrics"] == class_scores.ranking_metrics(folder, NUM_CLASSES).compute()
    out = folder.parent.parent
    study = json.loads((out / "ensemble" / "test.json").read_text())
    singles = {run.name: evaluate(run, "test")["metrics"] for run in members}
    assert {m["name"]: m["metrics"] for m in study["members"]} == singles
    assert study["without"]["metrics"] == result["metrics"]
    html = write_report([*members, out], tmp_path / "report").read_text()
    assert "mean of 3 runs" in html
    table = Reader(html).tables["members"]
    assert [row[0] for row in table[1:]] == ["audio", "moe", "rgb", "mean"]
    assert [row[1] for row in table[1:]] == [
        f"{gap:.4f}" for gap in (*(singles[m]["gap"] for m in ("audio", "moe", "rgb")), result["metrics"]["gap"])
    ]


def test_without_a_member_is_the_ensemble_of_the_others(members: list[Path]) -> None:
    study = json.loads(
        (make(members, members[0].parent / "all-mean", {"method": "mean"}) / "ensemble/test.json").read_text()
    )
    pair = make([p for p in members if p.name != "audio"], members[0].parent / "pair", {"method": "mean"})
    expected = evaluate(pair, predict(pair)[0].name)["metrics"]
    without_audio = next(m["without"] for m in study["members"] if m["name"] == "audio")
    assert without_audio == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["weighted", "greedy", "stack", "forest"])
def test_what_is_learned_is_learned_on_val_once(
    members: list[Path], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predictions of test are hidden while the rule is learned, and the rule is not learned again for another split."""
    settings = {"forest": {"trees": 30, "trees_a_task": 20}} if method == "forest" else {}
    folder, result = combine(members, method, **settings)
    fitted = json.loads((folder.parent.parent / "fit" / "rule.json").read_text())
    assert fitted["fitted_on"] == "val"
    assert fitted["members"] == ["audio", "moe", "rgb"]
    if method in ("weighted", "greedy"):
        assert sum(fitted["weights"]) == pytest.approx(1)
    assert result["metrics"]["gap"] > result["baselines"]["prior"]["gap"]
    stamps = {path: path.stat().st_mtime_ns for path in (folder.parent.parent / "fit").rglob("*.*")}
    predict(folder.parent.parent, "val")
    assert {path: path.stat().st_mtime_ns for path in (folder.parent.parent / "fit").rglob("*.*")} == stamps
    capsys.readouterr()
    predict(folder.parent.parent, "test")
    assert f"predictions {folder} are there" in capsys.readouterr().out


def test_rows_of_test_have_no_part_in_learning(members: list[Path], tmp_path: Path) -> None:
    """Members without any model: what they predicted of val alone is enough to learn by, and test is not asked for."""
    bare = []
    for run in members:
        bare.append(tmp_path / run.name)
        shutil.copytree(run, bare[-1], ignore=shutil.ignore_patterns("checkpoints", "test*"))
    out = make(bare, tmp_path / "weighted", {"method": "weighted"})
    with pytest.raises(ValueError, match=r"audio/predictions/test holds no predictions"):
        predict(out, "test")
    folder, data = predict(out, "val")
    assert data is None
    learned, same = (
        json.loads((o / "fit" / "rule.json").read_text()) for o in (out, members[0].parent / "all-weighted")
    )
    assert learned["weights"] == same["weights"]
    assert predictions.read_info(folder).split == "val"


def test_a_soup_predicts_by_the_mean_of_the_weights(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"name": "logistic"}
    one, two = train("one", model, 1), train("two", model, 2)
    out = make([one, two], one.parent / "soup", {"method": "soup"})
    weights = [load_file(next(run.glob("checkpoints/*/model.safetensors"))) for run in (one, two, out)]
    for name, mean in weights[2].items():
        np.testing.assert_allclose(mean, (weights[0][name] + weights[1][name]) / 2, atol=1e-7)
    predict_here(out, "test")
    predict(out)
    assert f"predictions {out / 'predictions' / 'test'} are there" in capsys.readouterr().out
    result = evaluate(out, "test")
    assert result["checkpoint"].startswith("checkpoints/step-")
    assert result["metrics"]["gap"] > result["baselines"]["prior"]["gap"]
    with pytest.raises(ValueError, match=r"model\.name is 'logistic' .* only weights of one architecture"):
        make([one, train("other", {"name": "moe"}, 1)], one.parent / "no-soup", {"method": "soup"})


def test_the_verb_makes_predicts_and_scores(members: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = members[0].parent / "by-verb"
    arguments = ["ensemble", *map(str, members), "--out", str(out)]
    cli([*arguments, "--method", "max"], standalone_mode=False)
    gap = json.loads((out / "evaluation" / "test.json").read_text())["metrics"]["gap"]
    assert f"gap {gap:.4f}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"method='best': Input should be 'mean', 'max'"):
        cli([*arguments, "--method", "best"], standalone_mode=False)
    with pytest.raises(ValueError, match=r"forest\.tree: unknown key; did you mean 'trees'"):
        cli([*arguments, "--method", "forest", "--set", "forest.tree=3"], standalone_mode=False)
    with pytest.raises(ValueError, match="is an ensemble, which predicts splits and corpora"):
        predict_files(out, "song.wav", None)


def test_another_ensemble_is_not_written_over(members: list[Path]) -> None:
    out = make(members, members[0].parent / "kept", {"method": "max"})
    assert make(members, out, {"method": "mean"}) == out  # nothing was predicted yet
    assert make(members[::-1], out, {"method": "mean"}) == out
    (out / "predictions" / "test").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds mean of .*, not max of .*; choose another --out"):
        make(members, out, {"method": "max"})
    with pytest.raises(ValueError, match="holds a run, not max of"):
        make(members, members[0], {"method": "max"})


def write_bare_run(run: Path, template: Path, rows: int, seed: int) -> Path:
    """A run folder of predictions alone: dense scores of `rows` made-up videos in many row groups."""
    folder = run / "predictions" / "test"
    folder.mkdir(parents=True)
    copied = run_folder.read_run(template).model_copy(update={"name": run.name})
    (run / "config.yaml").write_text(copied.to_yaml())
    shutil.copy(template / "dataset.json", run)
    rng, columns = np.random.default_rng(seed), class_scores.columns_of(NUM_CLASSES, None, labelled=True)
    labels = np.random.default_rng(0).integers(NUM_CLASSES, size=rows)
    with predictions.open_writer(folder / "part-00000.parquet", columns) as writer:
        for start in range(0, rows, 1000):
            ids = pa.array([f"v{i}" for i in range(start, start + 1000)])
            known = pa.array([[int(c)] for c in labels[start : start + 1000]], pa.list_(pa.int32()))
            writer.write_table(class_scores.to_table(ids, known, rng.random((1000, NUM_CLASSES), np.float32), None))
    info = predictions.PredictionsInfo(
        run=run.name, dataset="d", split="test", step=1, rows=rows, labelled=True, columns=columns
    )
    write_json(folder / "predictions.json", info.model_dump(mode="json"))
    return run


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("part-*"))}


KILLED_HALF_WAY = """
import os, sys
from pathlib import Path
from mmray.on_ray import ensemble
from mmray.ensembling.inputs import Inputs
plain = Inputs.blocks
Inputs.blocks = lambda inputs: plain(inputs, block_mb=0.25)
each = ensemble._each
def until_half(function, work, jobs, label, *names):
    for done, answer in enumerate(each(function, work, jobs, label, *names), 1):
        yield answer
        if label == "combine" and 2 * done > len(jobs):
            print("half", flush=True)
            sys.stdin.readline()  # until it is killed
ensemble._each = until_half
ensemble.predict_ensemble(Path(sys.argv[1]), "test", None, (), False)
"""


@pytest.mark.slow
def test_killed_half_way_it_goes_on_and_gives_the_same_bytes(
    members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_bare_run(tmp_path / f"bare{i}", members[0], 40_000, i) for i in range(3)]
    plain = Inputs.blocks
    monkeypatch.setattr(Inputs, "blocks", lambda inputs: plain(inputs, block_mb=0.25))
    whole = make(runs, tmp_path / "whole", {"method": "mean"})
    expected = digests(predict(whole)[0])
    assert len(expected) > 10

    killed = make(runs, tmp_path / "killed", {"method": "mean"})
    mark = f"MMRAY_TEST_KILLED={uuid.uuid4().hex}"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_HALF_WAY, str(killed)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | dict([mark.split("=")]),
    )  # fmt: skip
    assert process.stdout is not None
    assert "half\n" in iter(process.stdout.readline, "")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for left in processes_of(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)
    (partial,) = (killed / "predictions").glob(".test.partial-*")
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("part-*")}
    assert len(expected) / 2 < len(done) < len(expected)
    folder, _ = predict(killed)
    assert digests(folder) == expected
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
