"""Small runs of the training loop without Ray, which its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import nn

from mmray import config, prepared
from mmray.tasks import build
from mmray.training import checkpoint, feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit
from mmray.training.run_folder import read_log

MakeRun = Callable[..., config.Run]
MakeDataset = Callable[..., Path]
MakeModel = Callable[[], nn.Module]
Log = list[dict[str, Any]]

STEPS = 16  # of an epoch: the dataset of `make_dataset` has 101 training rows
TRAIN: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 6,
    "precision": "fp32",
    "log_every_steps": 1,
    "shuffle_lanes": 4,
    "shuffle_mb": 0.002,
}
OF_PHASES = {key: value for key, value in TRAIN.items() if key != "epochs"}


class Plain(nn.Module):
    """Five numbers in, six classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(5, 7), nn.Linear(7, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.base(x).tanh())


class Normed(nn.Module):
    """The same with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))
        self.neck = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.neck(self.base(x).relu()).relu())


def train(run: config.Run, folder: Path, model: MakeModel | None = None, rank: int = 0, world_size: int = 1) -> Log:
    """Train in this process, the run's model or another, and return the log."""
    info = prepared.read_info(folder)
    run_dir = run_folder.open_run(run, info) if rank == 0 else run.run_dir
    context = Context(run_dir, rank=rank, world_size=world_size)
    task = build(run, info)
    if model:
        task.build_model = model  # type: ignore[method-assign]
    fit(run, task, *feed.tables(run, task, folder, context), context)
    return read_log(run_dir)


def train_in_processes(run: config.Run, folder: Path, count: int, store: Path, model: MakeModel | None = None) -> Log:
    """The same in `count` processes that meet at the file `store`."""
    run_folder.open_run(run, prepared.read_info(folder))
    mp.spawn(_process, (count, run.to_dict(), folder, store, model), nprocs=count)
    return read_log(run.run_dir)


def _process(
    rank: int, world_size: int, values: dict[str, Any], folder: Path, store: Path, model: MakeModel | None
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    train(config.from_dict(values), folder, model, rank, world_size)
    dist.destroy_process_group()


def stop_at(run: config.Run, folder: Path, epoch: int, step: int, model: MakeModel | None = None) -> None:
    """Train until the run is killed, so to speak, before the step numbered `step` of `epoch`."""

    class Stop(Exception):
        pass

    info = prepared.read_info(folder)
    context = Context(run_folder.open_run(run, info))
    task = build(run, info)
    if model:
        task.build_model = model  # type: ignore[method-assign]
    train_tables, val_tables = feed.tables(run, task, folder, context)

    def interrupted(at_epoch: int, from_step: int) -> Iterator[pa.Table]:
        for number, table in enumerate(train_tables(at_epoch, from_step), from_step):
            if (at_epoch, number) == (epoch, step):
                raise Stop
            yield table

    with pytest.raises(Stop):
        fit(run, task, interrupted, val_tables, context)


def curve(log: Log, event: str = "step", key: str = "train/loss") -> list[Any]:
    """One value of every line of the log."""
    return [line.get(key) for line in log if line["event"] == event]


def weights(run: config.Run, step: int, file: str = "model") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    return load_file(checkpoint.folder_of(run.run_dir, step) / f"{file}.safetensors")
