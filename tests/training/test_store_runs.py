"""A run whose data and folder are in a store is the run that it is on this machine, number for number."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import faulty_proxy
from small_runs import TRAIN, MakeDataset, MakeRun, curve, stop_at, train

from mmray.storage import at
from mmray.training import checkpoint
from mmray.training.run_folder import read_log

SETTINGS = {**TRAIN, "checkpoint_every_steps": 7, "ema_decay": 0.9}


def test_training_and_going_on_in_a_store(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    here = make_dataset()
    there = at("memory://store-runs/data")
    for file in (path for path in here.rglob("*") if path.is_file()):
        (there / file.relative_to(here).as_posix()).write_bytes(file.read_bytes())
    local = train(make_run(train=SETTINGS), here)

    run = make_run(train=SETTINGS, out="memory://store-runs/runs")
    stop_at(run, there, 0, 12)  # after the checkpoint of step 7
    assert [state.step for state in checkpoint.list_states(run.run_dir)] == [7]
    stop_at(run, there, 1, 3)  # after that of the epoch's end
    stop_at(run, there, 2, 15)
    log = train(run, there)
    for event, key in (("step", "train/loss"), ("epoch", "train/loss"), ("epoch", "val/gap"), ("epoch", "val/loss")):
        assert curve(log, event, key) == curve(local, event, key)
    assert log == read_log(run.run_dir)
    assert len(list(run.run_dir.glob("tensorboard/*"))) == 4  # one an attempt
    assert sorted(path.name for path in checkpoint.folder_of(run.run_dir, 48).glob("*")) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "unaveraged.safetensors",
    ]


def test_the_log_is_there_before_the_checkpoint_that_vouches_for_it(
    make_run: MakeRun, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, logged = make_run(train=SETTINGS, out="memory://store-log/runs"), []
    save = checkpoint.save

    def saved(run_dir: Path, state: checkpoint.TrainState, *arguments: object) -> Path:
        logged.append((state.step, read_log(run_dir)[-1]["step"]))
        return save(run_dir, state, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", saved)
    train(run, make_dataset())
    assert logged
    assert all(step == last for step, last in logged)


@pytest.mark.slow
def test_a_minute_without_the_store_delays_training_and_no_more(
    make_run: MakeRun, make_dataset: MakeDataset, s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first upload of the second checkpoint on it refuses or hangs up, whatever it is asked."""
    data = make_dataset()
    local = train(make_run(train=SETTINGS), data)
    answers, lost = itertools.cycle(["503", "reset"]), []

    def fault(method: str, path: str) -> str | None:
        if not lost and method == "PUT" and "step-00000014" in path:
            lost.append(time.monotonic())
        return next(answers) if lost and time.monotonic() < lost[0] + 60 else None

    with faulty_proxy(s3_server.port) as proxy:
        proxy.fault = fault
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        run = make_run(train=SETTINGS, out=f"{s3_server.url}/{tmp_path.name}/runs")
        log = train(run, data)
        assert time.monotonic() > lost[0] + 60
        assert curve(log, "step", "train/loss") == curve(local, "step", "train/loss")
        assert curve(log, "epoch", "val/gap") == curve(local, "epoch", "val/gap")
        assert log == read_log(run.run_dir)
        assert [state.step for state in checkpoint.list_states(run.run_dir)][-1] == len(
            curve(log, "step", "train/loss")
        )
