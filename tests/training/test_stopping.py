"""A rank that is told to stop: all stop after the same step, with a checkpoint, and the run goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_runs import STEPS, TRAIN, MakeDataset, MakeRun, curve, train, train_in_processes

from mmray import config, prepared
from mmray.tasks import build
from mmray.training import checkpoint, feed, run_folder
from mmray.training.checkpoint import TrainState
from mmray.training.context import Context
from mmray.training.loop import fit
from mmray.training.run_folder import read_log

SETTINGS = TRAIN | {
    "log_every_steps": 3,
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "schedule": {"name": "step", "every_steps": 5, "gamma": 0.7, "weight_decay_gamma": 1.3},
    "ema_decay": 0.9,
}


def train_until_told(
    run: config.Run, folder: Path, told: Callable[[], bool], rank: int = 0, world_size: int = 1
) -> TrainState:
    info = prepared.read_info(folder)
    run_dir = run_folder.open_run(run, info) if rank == 0 else run.run_dir
    context = Context(run_dir, rank=rank, world_size=world_size, stopping=told)
    task = build(run, info)
    return fit(run, task, *feed.tables(run, task, folder, context), context)


def told_at(number: int) -> Callable[[], bool]:
    """Told to stop when asked for the n-th time."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) == number


def test_stopped_anywhere_it_goes_on_as_if_never_stopped(make_run: MakeRun, make_dataset: MakeDataset) -> None:
    """After the first step, within an epoch, after the last of one (not validated yet), and after the validation."""
    folder = make_dataset()
    undisturbed = train(make_run(train=SETTINGS), folder)
    run = make_run(name="stopped", train=SETTINGS)
    for number, step in [(1, 1), (6, 7), (STEPS - 7, STEPS), (1, STEPS), (STEPS, 2 * STEPS), (2, 2 * STEPS + 1)]:
        state = train_until_told(run, folder, told_at(number))
        assert state.step == step
        last = checkpoint.last(run.run_dir)
        assert last is not None
        assert last.step == step
        assert state.epoch == len(state.monitored) < 3
    resumed = train(run, folder)
    assert [(line["event"], line["step"]) for line in resumed] == [(e["event"], e["step"]) for e in undisturbed]
    for key in ("train/loss", "val/loss", "val/gap", "lr", "weight_decay"):
        for event in ("step", "epoch"):
            ours, theirs = curve(resumed, event, key), curve(undisturbed, event, key)
            assert [value is None for value in ours] == [value is None for value in theirs]
            np.testing.assert_allclose(
                np.array(ours, np.float64), np.array(theirs, np.float64), rtol=1e-12, err_msg=f"{key} of {event}"
            )


def _process(rank: int, count: int, values: dict[str, Any], folder: Path, store: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    torch.set_num_threads(1)
    told = told_at(20) if rank == 1 else told_at(0)
    state = train_until_told(config.from_dict(values), folder, told, rank, count)
    assert (state.step, state.step_in_epoch) == (19, 3), f"rank {rank}: {state}"
    dist.destroy_process_group()


def test_all_ranks_stop_after_the_step_at_which_one_is_told(
    make_run: MakeRun, make_dataset: MakeDataset, tmp_path: Path
) -> None:
    """The second of three processes is told, in the second epoch; after it the run goes on with two."""
    folder = make_dataset()
    undisturbed = train(make_run(train=SETTINGS | {"log_every_steps": 1}), folder)
    run = make_run(name="three", train=SETTINGS | {"log_every_steps": 1})
    run_folder.open_run(run, prepared.read_info(folder))
    mp.spawn(_process, (3, run.to_dict(), folder, tmp_path / "store"), nprocs=3)
    assert [line["step"] for line in read_log(run.run_dir) if line["event"] == "step"] == list(range(1, 20))
    resumed = train_in_processes(run, folder, 2, tmp_path / "another store")
    np.testing.assert_allclose(curve(resumed), curve(undisturbed), rtol=2e-5)
    np.testing.assert_allclose(curve(resumed, "epoch", "val/gap"), curve(undisturbed, "epoch", "val/gap"), atol=1e-3)
