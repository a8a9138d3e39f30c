"""The same job on 1, 2 and 4 Ray nodes of this machine, and what to expect of nodes with a network between them.

    .venv/bin/python benchmarks/nodes.py [--nodes 1 2 4] [--rows 16384] [--rounds 1]

Each node is a raylet of its own with one CPU. Measured of each number of nodes: preparation (seconds of `mmray
prepare`, the start of Ray's processes included) and training (`mmray train`, one worker a node, the mixture of 2
experts 1152 -> 4716 at batch 1,024: rows/s of the steps after the first few, and waiting for input). More nodes than
cores share the cores: "ideal" is the first line times the smaller of both numbers.

Then the model of `predict`, calibrated with one node's rate, for nodes that have their cores for themselves and a
network. All of its assumptions are arguments.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from mmray.datasets.synthetic import youtube8m
from mmray.training.run_folder import read_log

NUM_CLASSES, BATCH, WARM_STEPS = 4716, 1024, 2
GRADIENT_BYTES = 4 * NUM_CLASSES * (1152 * 5 + 2)  # of 2 experts and 3 gates a class, in float32
ROW_BYTES = 4 * 1152
MMRAY = [sys.executable, "-c", "from mmray.cli import main; main()"]


@dataclass(frozen=True)
class Machines:
    """What `predict` assumes of each of n equal nodes, and of what is between them."""

    rows_per_s: float  # that one node computes alone
    bandwidth_bytes_per_s: float  # of its network, each way
    latency_s: float  # of a message
    overlap: float  # share of the computing of a step, its backward pass, behind which sending hides
    straggling: float  # standard deviation of a step's computing time over its mean
    read_bytes_per_s: float  # that storage gives to each node
    row_bytes: float = ROW_BYTES


def predict(nodes: int, batch: int, gradient_bytes: float, of: Machines) -> float:
    """Rows a second of data-parallel training on `nodes` nodes, a batch of `batch` rows over all of them.

    A step takes as long as its slowest worker computes (the expected maximum of n normal times is about
    sqrt(2 ln n) deviations above their mean), and what of the ring all-reduce, 2 (n - 1) / n times the gradients
    through each node's network in 2 (n - 1) messages, does not hide behind the backward pass; or as long as reading.
    """
    compute_s = batch / nodes / of.rows_per_s * (1 + of.straggling * math.sqrt(2 * math.log(nodes)))
    sending_s = 2 * (nodes - 1) / nodes * gradient_bytes / of.bandwidth_bytes_per_s + 2 * (nodes - 1) * of.latency_s
    reading_s = batch / nodes * of.row_bytes / of.read_bytes_per_s
    return batch / max(compute_s + max(0.0, sending_s - of.overlap * compute_s), reading_s)


def measure(root: Path, nodes: int, number: int) -> tuple[float, float, float]:
    """Seconds of preparation, rows/s of training, and its input wait in percent."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
        folder = root / f"{nodes}-{number}"
        folder.mkdir()
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(run_values(root, folder, nodes)))
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        began = time.perf_counter()
        subprocess.run([*MMRAY, "prepare", str(path)], env=environment, check=True, stdout=subprocess.DEVNULL)
        prepare_s = time.perf_counter() - began
        subprocess.run([*MMRAY, "train", str(path)], env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        cluster.shutdown()
    log = read_log(folder / "runs" / "nodes")
    steps = [line for line in log if line["event"] == "step" and line["step"] > WARM_STEPS]
    seconds = [BATCH / line["rows_per_s"] for line in steps]
    waited = sum(line["input_wait_percent"] * s for line, s in zip(steps, seconds, strict=True)) / sum(seconds)
    return prepare_s, BATCH * len(steps) / sum(seconds), waited


def run_values(root: Path, folder: Path, nodes: int) -> dict[str, object]:
    return {
        "name": "nodes",
        "out": str(folder / "runs"),
        "task": "video_classification",
        "dataset": {"name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": NUM_CLASSES},
        "prepare": {"out": str(folder / "prepared"), "part_mb": 8},
        "model": {"name": "moe", "num_experts": 2},
        "train": {"epochs": 2, "batch_size": BATCH, "precision": "fp32", "log_every_steps": 1},
        "resources": {"num_workers": nodes, "cpus_per_worker": 1, "use_gpu": False},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rate", type=float, help="rows/s of one node in the model; default: as measured of one")
    parser.add_argument("--gbit", type=float, nargs="+", default=[10, 100], help="networks of the model")
    parser.add_argument("--latency-us", type=float, default=50)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--straggling", type=float, default=0.05)
    parser.add_argument("--read-mb", type=float, default=100, help="MB/s that storage gives to each node")
    given = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    rates: dict[int, float] = {}
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        root, videos = Path(name), given.rows + 200
        if given.nodes:
            fractions = {"train_fraction": given.rows / videos, "val_fraction": 100 / videos}
            made = youtube8m.Config(num_videos=videos, num_classes=NUM_CLASSES, **fractions)
            youtube8m.generate(root / "corpus", made, lambda done, total: None)
            print(f"MoE 2 experts, 1152 -> {NUM_CLASSES}, batch {BATCH}, fp32, {cores} cores for all nodes")
            print(f"{'nodes':>5} {'prepare s':>10} {'rows/s':>8} {'of ideal':>9} {'input wait %':>13}")
        for nodes in given.nodes:
            rounds = [measure(root, nodes, number) for number in range(given.rounds)]
            prepare_s, rates[nodes], waited = (statistics.median(r[i] for r in rounds) for i in range(3))
            first = min(rates)
            ideal = rates[first] * min(nodes, cores) / min(first, cores)
            print(f"{nodes:>5} {prepare_s:>10.1f} {rates[nodes]:>8,.0f} {rates[nodes] / ideal:>9.2f} {waited:>13.2f}")
    rate = given.rate or rates.get(1)
    if not rate:
        return
    print(f"\nModel: {rate:,.0f} rows/s a node; rows/s and share of ideal")
    print(
        f"{'nodes':>5}" + "".join(f"{f'{gbit:g} Gbit/s, batch {b:,}':>28}" for gbit in given.gbit for b in (1024, 8192))
    )
    for nodes in (1, 2, 4, 8, 16, 32, 64):
        cells = []
        for gbit in given.gbit:
            of = Machines(
                rate, gbit * 1e9 / 8, given.latency_us * 1e-6, given.overlap, given.straggling, given.read_mb * 1e6
            )
            for batch in (1024, 8192):
                expected = predict(nodes, batch, GRADIENT_BYTES, of)
                cells.append(f"{f'{expected:,.0f}   {expected / rate / nodes:.2f}':>28}")
        print(f"{nodes:>5}" + "".join(cells))


if __name__ == "__main__":
    main()
