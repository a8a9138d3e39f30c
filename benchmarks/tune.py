"""What a search costs beyond its trainings, and what stopping early saves.

    .venv/bin/python benchmarks/tune.py [--trials 4] [--seeds 3] [--only overhead|smoke|asha]

- overhead: seconds of a trial beyond its own training, after the first, with one worker and with two. Beside it the
  stock way: a Ray Tune function that builds a TorchTrainer around the very same loop, with Ray's own settings.
- smoke: `mmray tune configs/smoke/tune.yaml` on a prepared corpus, as a whole process.
- asha: 20 trials of 9 epochs, all of them to the end and with ASHA, for each seed: epochs spent and best score.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MMRAY = str(Path(sys.executable).with_name("mmray"))
STOCK = """
import json, sys, time
from pathlib import Path
import ray, ray.train
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback
from mmray import config, prepared
from mmray.tasks import build
from mmray.training import feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit

settings = json.loads(sys.argv[1])
def loop(given):
    run = config.from_dict(given["run"])
    info, folder = prepared.read_info(Path(given["folder"])), Path(given["folder"])
    task, context = build(run, info), ray.train.get_context()
    ours = Context(run.run_dir, get_device(), context.get_world_rank(), context.get_world_size(), ray.train.report)
    if ours.rank == 0:
        run_folder.open_run(run, info)
    fit(run, task, *feed.tables(run, task, folder, ours), ours)

def trial(given):
    run = settings["run"] | {"name": f"stock-{given['number']}"}
    scaling = ScalingConfig(num_workers=settings["workers"], resources_per_worker={"CPU": 0.9})
    trainer = TorchTrainer(
        loop,
        train_loop_config={"run": run, "folder": settings["folder"]},
        scaling_config=scaling,
        run_config=RunConfig(name=run["name"], storage_path=settings["storage"], callbacks=[TuneReportCallback()]),
    )
    trainer.fit()
    (Path(run["out"]) / run["name"] / "ended").write_text(str(time.time()))

ray.init(address="local")
tune.Tuner(
    tune.with_resources(trial, {"cpu": 0.01}),
    param_space={"number": tune.grid_search(list(range(settings["trials"])))},
    tune_config=tune.TuneConfig(max_concurrent_trials=1),
    run_config=tune.RunConfig(storage_path=settings["storage"]),
).fit()
"""


def run_values(root: Path, name: str, **sections: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": name,
        "out": str(root / "runs"),
        "task": "video_classification",
        "dataset": {"name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": 200},
        "prepare": {"out": str(root / "prepared"), "part_mb": 16},
        "model": {"name": "moe", "num_experts": 2},
        "train": {"epochs": 2, "batch_size": 256, "optimizer": {"lr": 0.003}},
    }
    return values | sections


def mmray(root: Path, verb: str, values: dict[str, Any]) -> None:
    path = root / f"{values['name']}.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    subprocess.run([MMRAY, verb, str(path)], check=True, stdout=subprocess.DEVNULL)


def trained_s(run_dir: Path) -> float:
    """Seconds of a run from the begin of its log to its end."""
    *_, last = (run_dir / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(last)["time_s"])


def beyond_training(run_dirs: list[Path], ended: list[float]) -> list[float]:
    """Seconds of each trial but the first beyond its own training; trials one after another."""
    walls = [b - a for a, b in itertools.pairwise(ended)]
    return [wall - trained_s(run_dir) for wall, run_dir in zip(walls, run_dirs[1:], strict=True)]


def overhead(root: Path, trials: int) -> None:
    for workers in (1, 2):
        space = {"train.optimizer.lr": {"loguniform": [0.001, 0.01]}}
        tune = {"space": space, "samples": trials, "concurrency": 1, "sampler": "random"}
        values = run_values(root, f"ours-{workers}", resources={"num_workers": workers}, tune=tune)
        mmray(root, "tune", values)
        folders = sorted((root / "runs" / values["name"] / "trials").glob("[0-9]*"))
        ours = beyond_training(folders, [(folder / "metrics.jsonl").stat().st_mtime for folder in folders])
        (prepared,) = (root / "prepared").glob("youtube8m-*")
        out = root / f"stock-{workers}"
        settings = {
            "run": run_values(root, "x") | {"out": str(out)},
            "folder": str(prepared),
            "workers": workers,
            "trials": trials,
            "storage": str(root / f"ray-{workers}"),
        }
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "TUNE_"))}
        environment["RAY_AUTH_MODE"] = "disabled"
        command = [sys.executable, "-c", STOCK, json.dumps(settings)]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stocks = sorted(out.glob("stock-*"))
        stock = beyond_training(stocks, [float((folder / "ended").read_text()) for folder in stocks])
        a, b = statistics.median(ours), statistics.median(stock)
        print(f"{workers} worker(s): {a:.2f} s a trial beyond training, stock {b:.2f} s, ratio {a / b:.3f}")


def smoke(root: Path) -> None:
    overrides = ["--set", f"dataset.path={root}/corpus", "--set", "dataset.class_names_file=null"]
    overrides += ["--set", f"out={root}/runs", "--set", f"prepare.out={root}/prepared"]
    subprocess.run([MMRAY, "prepare", "configs/smoke/tune.yaml", *overrides], check=True, stdout=subprocess.DEVNULL)
    began = time.perf_counter()
    command = [MMRAY, "tune", "configs/smoke/tune.yaml", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    info = json.loads((root / "runs" / "smoke-tune" / "study.json").read_text())
    trials = {trial["number"]: trial for trial in info["trials"]}
    best, default = trials[info["best"][0]]["objectives"]["val/gap"], trials[0]["objectives"].get("val/gap")
    print(f"20 smoke trials: {seconds:.0f} s; val/gap {best:.4f}, of the default run {default or float('nan'):.4f}")


def asha(root: Path, seeds: int) -> None:
    space = {
        "train.optimizer.lr": {"loguniform": [0.0003, 0.1]},
        "train.batch_size": {"choice": [64, 128, 256]},
        "model.num_experts": {"int": [1, 4]},
    }
    shares, losses = [], []
    for seed in range(seeds):
        found = {}
        for stopper in ("none", "asha"):
            name = f"{stopper}-{seed}"
            sampler = {"name": "tpe", "seed": seed}
            tune = {"space": space, "samples": 20, "sampler": sampler, "stopper": stopper}
            train = {"epochs": 9, "batch_size": 256, "schedule": {"name": "cosine"}}
            mmray(root, "tune", run_values(root, name, seed=seed, train=train, tune=tune))
            info = json.loads((root / "runs" / name / "study.json").read_text())
            epochs = sum(len(trial["curve"]) for trial in info["trials"])
            found[stopper] = epochs, max(trial["objectives"].get("val/gap", 0) for trial in info["trials"])
        (all_epochs, whole), (epochs, best) = found["none"], found["asha"]
        shares.append(epochs / all_epochs)
        losses.append(1 - best / whole)
        print(f"seed {seed}: ASHA {epochs} of {all_epochs} epochs, val/gap {best:.4f} of {whole:.4f}")
    print(f"ASHA: {max(shares):.2f} of the epochs at most, within {max(losses):.1%} of the best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["overhead", "smoke", "asha"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for what, num_videos in (("overhead", 4000), ("asha", 4000), ("smoke", 20_000)):
            if given.only not in (None, what):
                continue
            root = Path(name) / what
            corpus = [MMRAY, "synth", "youtube8m", str(root / "corpus"), "--videos", str(num_videos)]
            subprocess.run(corpus, check=True, stdout=subprocess.DEVNULL)
            if what == "overhead":
                overhead(root, given.trials)
            elif what == "asha":
                asha(root, given.seeds)
            else:
                smoke(root)


if __name__ == "__main__":
    main()
