"""The whole path of a cluster: three nodes behind a token, all data in a store, every verb a job, the page fetched.

About four minutes on 2 CPU cores: each job compiles what it imports, as its copy of the package has no cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from mmray.datasets.synthetic import youtube8m
from mmray.storage import at

if TYPE_CHECKING:
    from conftest import S3Server

pytest_plugins = ["heads"]
pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.slow]

PROJECT = Path(__file__).parent.parent.parent


def test_prepare_train_and_ensemble_as_jobs_on_three_nodes_with_a_store(s3_server: S3Server, tmp_path: Path) -> None:
    from heads import started

    root = f"{s3_server.url}/{uuid.uuid4().hex}"
    put_corpus(tmp_path / "corpus", f"{root}/corpus")
    run = {
        "name": "first",
        "out": f"{root}/runs",
        "task": "video_classification",
        "dataset": {
            "name": "youtube8m", "path": f"{root}/corpus", "level": "video", "num_classes": 12,
            "features": {"mean_rgb": 24, "mean_audio": 8}, "class_names_file": f"{root}/corpus/vocabulary.csv",
        },
        "prepare": {"out": f"{root}/prepared"},
        "model": "logistic",
        "train": {"epochs": 2, "batch_size": 50, "precision": "fp32"},
        "resources": {"num_workers": 2, "cpus_per_worker": 0.5},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    with started(uuid.uuid4().hex * 2, cpus=1, **s3_server.environment) as head:
        head.environment.update(s3_server.environment)
        head.add_node()
        head.add_node()
        seen = mmray(head.environment, tmp_path, "doctor", "--json", "--address", head.url, "--storage", f"{root}/try")
        findings = [tuple(finding[key] for key in ("topic", "level", "text")) for finding in json.loads(seen.stdout)]
        assert next(text for topic, _, text in findings if topic == "nodes").startswith("3, with 3 CPUs, 0 GPUs")
        assert [level for topic, level, _ in findings if topic == "storage"] == ["ok"] * 3

        stranger = head.environment | {"RAY_AUTH_MODE": "disabled"}
        refused = mmray(stranger, tmp_path, "submit", "prepare", "run.yaml", "--address", head.url)
        assert refused.returncode == 1
        assert "asks for a token" in refused.stderr

        def job(*arguments: str) -> str:
            done = mmray(head.environment, tmp_path, "submit", *arguments, "--address", head.url)
            assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        job("prepare", "run.yaml")
        job("train", "run.yaml")
        job("train", "run.yaml", "--set", "name=second", "--set", "seed=1")
        members = [f"{root}/runs/first", f"{root}/runs/second"]
        scored = job("ensemble", *members, "--out", f"{root}/runs/both")
        job("report", f"{root}/runs/both", *members)
        listed = json.loads(mmray(head.environment, tmp_path, "jobs", "--json", "--address", head.url).stdout)

    assert [(row["verb"], row["run"], row["status"]) for row in reversed(listed)] == [
        ("doctor", "nodes", "succeeded"),
        ("prepare", "first", "succeeded"),
        ("train", "first", "succeeded"),
        ("train", "second", "succeeded"),
        ("ensemble", "both", "succeeded"),
        ("report", "both", "succeeded"),
    ]
    evaluation = json.loads(at(f"{root}/runs/both/evaluation/test.json").read_text())
    assert evaluation["rows"] == 45
    assert f"gap {evaluation['metrics']['gap']:.4f}" in scored
    page = at(f"{root}/runs/both/report/index.html").read_text(encoding="utf-8")
    assert f"{evaluation['metrics']['gap']:.4f}" in page
    for secret in (s3_server.environment["AWS_SECRET_ACCESS_KEY"], head.token):
        assert secret is not None
        assert secret not in page


def mmray(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    own = environment | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])}
    command = [sys.executable, "-m", "mmray", *arguments]
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=400)


def put_corpus(folder: Path, url: str) -> None:
    """Make a corpus of 300 videos here, and copy it into the store."""
    made = youtube8m.Config(num_videos=300, num_classes=12, rgb_size=24, audio_size=8)
    youtube8m.generate(folder, made, lambda done, total: None)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            at(f"{url}/{path.relative_to(folder)}").write_bytes(path.read_bytes())
