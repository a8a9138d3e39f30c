"""Seconds from the command line to the first training step, with 2 workers.

    .venv/bin/python benchmarks/startup.py [--rounds 3]

Beside it: a script of plain Ray that trains one linear layer in a 2-worker TorchTrainer with Ray's own settings.
Both are timed as whole processes, from their start to the moment the first finished step stands in a file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN_RAY = """
import torch, ray.train
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
def work():
    model = prepare_model(torch.nn.Linear(1152, 200))
    model(torch.randn(64, 1152)).sum().backward()
    if ray.train.get_context().get_world_rank() == 0:
        open(OUT, "w").write("step")
OUT = {out!r}
TorchTrainer(work, scaling_config=ScalingConfig(num_workers=2)).fit()
"""
RUN = """
name: startup
out: {root}/runs-{number}
task: video_classification
dataset: {{name: youtube8m, path: {root}/corpus, level: video, num_classes: 200}}
prepare: {{out: {root}/prepared}}
model: {{name: moe, num_experts: 4}}
train: {{epochs: 1, batch_size: 256, log_every_steps: 1}}
resources: {{num_workers: 2}}
"""


def seconds_until(path: Path, command: list[str], environment: dict[str, str]) -> float:
    """Start `command` and return the seconds until `path` has content; then wait for its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not (path.exists() and path.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.communicate()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    mmray = str(Path(sys.executable).with_name("mmray"))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        subprocess.run([mmray, "synth", "youtube8m", str(root / "corpus"), "--videos", "4000"], check=True)
        (root / "run.yaml").write_text(RUN.format(root=root, number=0))
        subprocess.run([mmray, "prepare", str(root / "run.yaml")], check=True)
        ours, peer = [], []
        for number in range(1, rounds + 1):
            (root / "run.yaml").write_text(RUN.format(root=root, number=number))
            log = root / f"runs-{number}" / "startup" / "metrics.jsonl"
            ours.append(seconds_until(log, [mmray, "train", str(root / "run.yaml")], dict(os.environ)))
            out = root / f"plain-{number}"
            (root / "plain.py").write_text(PLAIN_RAY.format(out=str(out)))
            peer.append(seconds_until(out, [sys.executable, str(root / "plain.py")], dict(os.environ)))
    print(f"{'round':>5} {'mmray train, s':>15} {'plain Ray, s':>13}")
    for number, (a, b) in enumerate(zip(ours, peer, strict=True)):
        print(f"{number:>5} {a:>15.1f} {b:>13.1f}")
    print(f"median {statistics.median(ours):.1f} s (target 15) against {statistics.median(peer):.1f} s")


if __name__ == "__main__":
    main()
