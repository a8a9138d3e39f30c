"""Training from the prepared dataset against a plain PyTorch loop that holds the same data in memory.

    .venv/bin/python benchmarks/training.py [--rounds 3] [--rows 8192] [--precision fp32|bf16]

Both train the mixture of 2 experts, 1152 -> 4716, in 2 processes with the same batches, optimiser and precision; one
runs as `mmray train` (Ray Train, rows read from Parquet, metrics logged), the other is DDP over tensors in memory and
nothing else. Rounds alternate; rows/s are of the steps after the first few. Prints the ratio and mmray's input wait.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mmray import config, prepared
from mmray.datasets.synthetic import youtube8m
from mmray.models.moe import Config as Moe
from mmray.on_ray.train import train
from mmray.training.run_folder import read_log

NUM_CLASSES, BATCH, WARM_STEPS, PROCESSES = 4716, 1024, 2, 2


def make_run(root: Path, precision: str) -> config.Run:
    return config.from_dict(
        {
            "name": "ours", "out": str(root / "runs"), "task": "video_classification",
            "dataset": {
                "name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": NUM_CLASSES
            },
            "prepare": {"out": str(root / "prepared")},
            "model": {"name": "moe", "num_experts": 2},
            "train": {"epochs": 2, "batch_size": BATCH, "precision": precision, "log_every_steps": 1},
            "resources": {"num_workers": PROCESSES},
        }
    )  # fmt: skip


def ours(run: config.Run) -> tuple[float, float]:
    """Rows/s and input wait in percent, of the steps after the first."""
    shutil.rmtree(run.run_dir, ignore_errors=True)
    steps = [line for line in read_log(train(run)) if line["event"] == "step" and line["step"] > WARM_STEPS]
    seconds = sum(BATCH / line["rows_per_s"] for line in steps)
    waited = sum(line["input_wait_percent"] * BATCH / line["rows_per_s"] for line in steps) / seconds
    return BATCH * len(steps) / seconds, waited


def plain_process(rank: int, data: str, precision: str, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    arrays = np.load(data)
    x, labels = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["labels"])
    torch.manual_seed(0)
    model = Moe(num_experts=2).build(x.shape[1], NUM_CLASSES)

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return self.model.loss(x, labels)

    loss = torch.nn.parallel.DistributedDataParallel(Loss(), gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(model.parameters(), foreach=True)
    step, local = 0, BATCH // PROCESSES
    began = time.perf_counter()
    for _ in range(2):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start + rank * local : start + (rank + 1) * local]
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss(x[rows], labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step == WARM_STEPS:
                began = time.perf_counter()
    if rank == 0:
        Path(out).write_text(str((step - WARM_STEPS) * BATCH / (time.perf_counter() - began)))
    dist.destroy_process_group()


def plain(root: Path, data: Path, precision: str) -> float:
    (root / "store").unlink(missing_ok=True)
    mp.spawn(plain_process, (str(data), precision, str(root / "store"), str(root / "out")), nprocs=PROCESSES)
    return float((root / "out").read_text())


def in_memory(run: config.Run, root: Path) -> Path:
    """The training split as one file of arrays, for the plain loop."""
    from mmray.on_ray.prepare import prepare

    folder = prepare(run)
    split = prepared.read_info(folder).split("train")
    table = prepared.SplitReader(folder, split, ("mean_rgb", "mean_audio", "labels")).take(np.arange(split.rows))
    values, offsets = prepared.ragged_column(table, "labels")
    labels = np.zeros((split.rows, NUM_CLASSES), bool)
    labels[np.repeat(np.arange(split.rows), np.diff(offsets)), values] = True
    x = np.concatenate([prepared.tensor_column(table, name) for name in ("mean_rgb", "mean_audio")], axis=1)
    np.savez(root / "data.npz", x=x, labels=labels)
    return root / "data.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        videos = arguments.rows + 200
        made = youtube8m.Config(
            num_videos=videos,
            num_classes=NUM_CLASSES,
            train_fraction=arguments.rows / videos,
            val_fraction=100 / videos,
        )
        youtube8m.generate(root / "corpus", made, lambda done, total: None)
        run = make_run(root, arguments.precision)
        data = in_memory(run, root)
        rounds = [(plain(root, data, arguments.precision), *ours(run)) for _ in range(arguments.rounds)]
    print(f"\nMoE 2 experts, 1152 -> {NUM_CLASSES}, batch {BATCH}, {PROCESSES} processes, {arguments.precision}")
    print(f"{'round':>5} {'plain rows/s':>13} {'mmray rows/s':>13} {'ratio':>6} {'input wait %':>13}")
    for number, (peer, rows_per_s, waited) in enumerate(rounds):
        print(f"{number:>5} {peer:>13,.0f} {rows_per_s:>13,.0f} {rows_per_s / peer:>6.2f} {waited:>13.2f}")
    ratio = statistics.median(rows_per_s / peer for peer, rows_per_s, _ in rounds)
    waited = statistics.median(r[2] for r in rounds)
    print(f"median ratio {ratio:.2f} (target 0.9), median input wait {waited:.2f} % (target < 5)")


if __name__ == "__main__":
    sys.exit(main())
