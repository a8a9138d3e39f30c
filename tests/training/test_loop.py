"""The training loop without Ray: one curve whatever the number of processes, interruptions and micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_runs import TRAIN, MakeDataset, MakeRun, curve, stop_at, train, train_in_processes

from mmray.training import checkpoint
from mmray.training.run_folder import read_log


def test_learns_and_logs_every_step(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    log = train(make_run(train=TRAIN | {"epochs": 8, "optimizer": {"lr": 0.1}}), make_dataset())
    steps = [line for line in log if line["event"] == "step"]
    epochs = [line for line in log if line["event"] == "epoch"]
    assert [line["step"] for line in steps] == list(range(1, 8 * 16 + 1))
    assert [line["epoch"] for line in epochs] == list(range(8))
    assert all(line["train_rows"] == 96 and line["val_rows"] == 23 for line in epochs)
    assert epochs[-1]["val/loss"] < 0.5 * epochs[0]["val/loss"]
    assert epochs[-1]["val/gap"] > 0.95
    assert all(0 <= line["input_wait_percent"] <= 100 and line["rows_per_s"] > 0 for line in log)


def test_epoch_loss_is_the_mean_of_its_steps(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    log = train(make_run(train=TRAIN), make_dataset())
    for epoch, loss in enumerate(curve(log, "epoch")):
        steps = [line["train/loss"] for line in log if line["event"] == "step" and line["epoch"] == epoch]
        assert loss == pytest.approx(np.mean(steps), rel=1e-6)


@pytest.mark.parametrize("changed", [{"accumulate": 4}, {"accumulate": 6, "clip_norm": 0.5}])
def test_micro_batches_do_not_change_the_curve(
    make_run: MakeRun, make_dataset: MakeDataset, changed: dict[str, Any]
) -> None:
    folder = make_dataset()
    whole = train(make_run(train=TRAIN | changed | {"accumulate": 1}), folder)
    parts = train(make_run(name="parts", train=TRAIN | changed), folder)
    np.testing.assert_allclose(curve(parts), curve(whole), rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_stopped_run_goes_on_as_if_never_stopped(make_run: MakeRun, make_dataset: MakeDataset, optimizer: str) -> None:
    folder = make_dataset()
    settings = TRAIN | {
        "checkpoint_every_steps": 7,
        "log_every_steps": 3,
        "optimizer": {"name": optimizer, "lr": 0.01, "momentum": 0.5},
        "schedule": {"name": "cosine", "warmup_steps": 5},
    }
    undisturbed = train(make_run(train=settings), folder)
    run = make_run(name="stopped", train=settings)

    stop_at(run, folder, 0, 12)  # after the checkpoint of step 7
    stop_at(run, folder, 1, 3)  # after that of the epoch's end
    stop_at(run, folder, 2, 15)
    resumed = train(run, folder)
    assert [line["train_rows"] for line in resumed if line["event"] == "epoch"] == [96] * 3
    assert [(line["event"], line["step"]) for line in resumed] == [
        (line["event"], line["step"]) for line in undisturbed
    ]
    for event in ("step", "epoch"):
        np.testing.assert_allclose(curve(resumed, event), curve(undisturbed, event), rtol=1e-12)
    for key in ("val/gap", "val/loss", "lr"):
        assert [line.get(key) for line in resumed] == [line.get(key) for line in undisturbed]


def test_finished_run_is_not_trained_again(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    first = train(make_run(train=TRAIN), folder)
    assert train(make_run(train=TRAIN), folder) == first
    longer = train(make_run(train=TRAIN | {"epochs": 4}), folder)
    assert longer[: len(first)] == first
    assert len([line for line in longer if line["event"] == "epoch"]) == 4


def test_another_run_of_the_same_name_is_refused(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    train(make_run(train=TRAIN), folder)
    with pytest.raises(ValueError, match=r"holds another run:\n  train\.batch_size: 6 there, 5 now"):
        train(make_run(train=TRAIN | {"batch_size": 5}), folder)


def test_run_that_never_began_can_be_corrected(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    with pytest.raises(ValueError, match="lower it"):
        train(make_run(train=TRAIN | {"batch_size": 500}), folder)
    assert len(train(make_run(train=TRAIN), folder)) == 3 * 17


def test_epochs_of_a_cosine_run_stay(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    folder, cosine = make_dataset(), TRAIN | {"schedule": {"name": "cosine"}}
    train(make_run(train=cosine), folder)
    with pytest.raises(ValueError, match=r"train\.epochs: 3 there, 4 now"):
        train(make_run(train=cosine | {"epochs": 4}), folder)


def test_best_and_last_checkpoints_are_kept(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    run = make_run(train=TRAIN | {"epochs": 6, "keep_best": 2, "optimizer": {"lr": 0.5}})
    log = [line for line in train(run, make_dataset()) if line["event"] == "epoch"]
    ranked = sorted(log, key=lambda line: (-line["val/gap"], -line["step"]))
    kept = [state.step for state in checkpoint.list_states(run.run_dir)]
    assert kept == sorted({ranked[0]["step"], ranked[1]["step"], log[-1]["step"]})
    assert checkpoint.best(run.run_dir, "val/gap", maximise=True).step == ranked[0]["step"]


def test_early_stopping(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    run = make_run(train=TRAIN | {"epochs": 50, "early_stopping": {"patience": 2, "min_delta": 0.5}})
    epochs = [line for line in train(run, make_dataset()) if line["event"] == "epoch"]
    assert len(epochs) == 3  # the first is the best; two bring less than 0.5 more
    assert len(train(run, run.run_dir.parent.parent / "dataset")) == 3 * 17, "it stays stopped"


def test_loss_that_is_not_finite_stops_the_run(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    run = make_run(train=TRAIN | {"optimizer": {"name": "sgd", "lr": 1e38}})
    with pytest.raises(
        FloatingPointError, match=r"train/loss became (nan|inf) by step \d+ .*lower train\.optimizer\.lr"
    ):
        train(run, make_dataset())


def test_loss_as_monitor_is_better_when_lower(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    settings = TRAIN | {"epochs": 5, "monitor": "val/loss", "early_stopping": {"patience": 1}, "optimizer": {"lr": 0.1}}
    run = make_run(train=settings)
    losses = [line["val/loss"] for line in train(run, make_dataset()) if line["event"] == "epoch"]
    assert losses == sorted(losses, reverse=True), "falls with every epoch"
    assert len(losses) == 5
    assert checkpoint.best(run.run_dir, "val/loss", maximise=False).metrics["val/loss"] == losses[-1]


def test_loss_that_is_not_finite_is_never_saved(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    settings = {"optimizer": {"name": "sgd", "lr": 1e38}, "log_every_steps": 50, "checkpoint_every_steps": 4}
    run = make_run(train=TRAIN | settings)
    with pytest.raises(FloatingPointError, match="train/loss became"):
        train(run, make_dataset())
    assert checkpoint.list_states(run.run_dir) == []


def test_monitor_that_is_no_metric(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    with pytest.raises(ValueError, match=r"train\.monitor='val/accuracy' is not a metric.*val/gap"):
        train(make_run(train=TRAIN | {"monitor": "val/accuracy"}), make_dataset())


def test_error_of_the_feed_reaches_the_loop(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    next((folder / "train").glob("*.parquet")).write_bytes(b"broken")
    with pytest.raises(pa.ArrowInvalid):
        train(make_run(train=TRAIN), folder)


def test_tensorboard_has_settings_and_clean_tags(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(train=TRAIN)
    train(run, make_dataset())
    board = EventAccumulator(str(run.run_dir / "tensorboard")).Reload()
    tags = board.Tags()["scalars"]
    assert {"train/loss", "val/gap", "val/loss", "train_by_step/loss", "speed/rows_per_s"} <= set(tags)
    assert [event.step for event in board.Scalars("val/gap")] == [16, 32, 48]
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_three_processes_give_the_curve_of_one(make_run: MakeRun, make_dataset: MakeDataset, tmp_path: Path) -> None:
    """101 training rows in batches of 7 and 23 validation rows: nothing divides by 3."""
    folder = make_dataset()
    settings = TRAIN | {"batch_size": 7, "epochs": 2, "clip_norm": 1.0, "accumulate": 2}
    alone = train(make_run(train=settings), folder)
    run = make_run(name="three", train=settings)
    together = train_in_processes(run, folder, 3, tmp_path / "store")
    np.testing.assert_allclose(curve(together), curve(alone), rtol=2e-5)
    for line, other in zip(together, alone, strict=True):
        if line["event"] == "epoch":
            assert line["train_rows"] == other["train_rows"] == 98
            assert line["val_rows"] == other["val_rows"] == 23
            assert line["val/loss"] == pytest.approx(other["val/loss"], rel=2e-5)
            assert line["val/gap"] == pytest.approx(other["val/gap"], abs=1e-3)


def test_log_line_torn_by_a_crash_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2')
    assert read_log(tmp_path) == [{"step": 1}]
