"""Searches whose trials are a formula instead of a training: the decisions and the memory of a search without Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mmray import config, study
from mmray.on_ray import samplers
from mmray.on_ray.search import Job, Search, Watcher
from mmray.study import StudyInfo
from mmray.tuning import space_of

LR = {"train.optimizer.lr": {"loguniform": ["1e-4", "1e-1"]}}
MODELS = LR | {"model": {"choice": ["logistic", "moe"], "when": {"moe": {"model.num_experts": {"int": [1, 8]}}}}}
EPOCHS = 9


def formula_run(out: Path, space: dict[str, Any] = LR, **tune: Any) -> config.Run:
    """A run of 9 epochs with a search, in the folder `out`."""
    return config.from_dict(
        {
            "name": "formula",
            "out": str(out),
            "task": "video_classification",
            "dataset": {"name": "youtube8m", "path": "data", "num_classes": 10, "level": "video"},
            "model": {"name": "moe", "num_experts": 4},
            "train": {"epochs": EPOCHS, "optimizer": {"lr": 0.001}},
            "resources": {"max_failures": 1},
            "tune": {"space": space, **tune},
        }
    )


def open_search(run: config.Run, objectives: dict[str, Any] | None = None, concurrency: int = 1) -> Search:
    space = space_of(run)
    objectives = objectives or {"val/gap": "max"}
    samplers.check(run, space, list(objectives))
    return Search(run, space, study.open_study(run), objectives, concurrency, Watcher())


def best_of(job: Job) -> float:
    """The score of a trial at its end: the best learning rate is 0.01, and its epochs come near it evenly."""
    return 1 - abs(math.log10(float(job.values["train.optimizer.lr"] or 0)) + 2) / 3


def train(search: Search, job: Job) -> None:
    for epoch in [EPOCHS] if search.settings.stopper.name == "none" else range(1, EPOCHS + 1):
        if not search.report(job.number, epoch, {"val/gap": best_of(job) * epoch / EPOCHS, "val/loss": 1.0}):
            search.left(job.number)
            return
    search.finish(
        job.number, {"val/gap": best_of(job), "num_parameters": float(job.values.get("model.num_experts") or 0)}
    )


def finish(search: Search) -> StudyInfo:
    while not search.is_over:
        jobs = []
        while (job := search.next()) is not None:
            jobs.append(job)
        assert jobs
        for job in jobs:
            train(search, job)
    return search.write()
