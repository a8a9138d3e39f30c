"""Searches over a tiny corpus, whose trials train: on Ray, or one after another in this process."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from mmray import config, study, tuning
from mmray.datasets.synthetic import youtube8m
from mmray.on_ray import samplers
from mmray.on_ray.machines import Cluster, Node
from mmray.on_ray.plan import plan
from mmray.on_ray.prepare import prepare
from mmray.on_ray.search import Search, Watcher
from mmray.training.run_folder import read_log

LR = {"train.optimizer.lr": {"loguniform": ["1e-3", "1e-1"]}}


def small_sections(corpus: Path) -> dict[str, Any]:
    """Sections of a run file for a small mixture of experts over 601 videos, whose corpus is made in a folder."""
    made = youtube8m.Config(num_videos=601, num_classes=8, rgb_size=12, audio_size=4, videos_per_shard=300)
    youtube8m.generate(corpus, made, lambda done, total: None)
    features = {"mean_rgb": 12, "mean_audio": 4}
    return {
        "task": "video_classification",
        "dataset": {"name": "youtube8m", "path": str(corpus), "level": "video", "num_classes": 8, "features": features},
        "model": {"name": "moe", "num_experts": 2},
        "prepare": {"part_mb": 1},
        "train": {"epochs": 3, "batch_size": 50, "precision": "fp32", "log_every_steps": 4},
        "resources": {"max_failures": 0},
    }


def searched_here(
    run: config.Run, objectives: dict[str, Any], monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> study.StudyInfo:
    """The same search without Ray: the trials one after another in this process, whose own files go to `scratch`."""
    from mmray.on_ray import executor, trial  # after Ray was started, for they import it

    monkeypatch.setattr(trial, "set_up_process", lambda device, num_threads: None)  # it would last for other tests
    space = tuning.space_of(run)
    data = {tuning.data_key(variant): prepare(variant) for variant in tuning.data_variants(run, space)}
    samplers.check(run, space, list(objectives))
    placed = plan(run, Cluster(nodes=[Node(cpus=1)]))
    search = Search(run, space, study.open_study(run), objectives, 1, Watcher())
    with contextlib.ExitStack() as at_end:
        process = None
        while (job := search.next()) is not None:
            settings = {"job": json.dumps(executor.job_settings(job, placed, data, list(objectives)))}
            if process is None:
                process = new_process(settings, scratch, monkeypatch)
                at_end.callback(process.cleanup)
            else:
                assert process.reset_config(settings)
            while not (report := process.step())["done"]:
                assert search.report(job.number, report["epoch"], json.loads(report["metrics"]))
            executor.conclude(search, job.number, report)
    return search.write(at_end=True)


def new_process(settings: dict[str, str], scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What Ray Tune starts as a process, in this one; its own files go to `scratch`, not to the home."""
    from ray.tune.trainable import trainable

    from mmray.on_ray.trial import Trial

    monkeypatch.setattr(trainable, "DEFAULT_STORAGE_PATH", str(scratch))
    return Trial(config=settings)


def scores(run_dir: Path) -> list[float]:
    return [line["val/gap"] for line in read_log(run_dir) if line["event"] == "epoch"]
