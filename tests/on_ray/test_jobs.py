"""The scripts of jobs/ as Ray jobs, on a cluster of their own: what is submitted is what runs, to the finished page.

Takes about 75 seconds on 2 CPU cores: the start of Ray's processes, and compiling, as the copy has no cache.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mmray.datasets.synthetic import youtube8m
from mmray.training.run_folder import read_log

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

PROJECT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
SUBMITTED = "0.0.0+submitted"  # the version that the submitted copy of mmray says it has


@pytest.fixture
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own on this machine: the address of its dashboard, and the environment to speak to it from."""
    from heads import started

    with started(token=None) as head:
        yield head.url, head.environment


@pytest.fixture
def working_dir(tmp_path: Path) -> Path:
    """A copy of what a job needs of the project; its mmray can be told from the installed one by its version."""
    folder = tmp_path / "project"
    for name in ("mmray", "jobs", "configs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "mmray" / "__init__.py"
    text, count = re.subn(r'__version__ = ".*"', f'__version__ = "{SUBMITTED}"', init.read_text())
    assert count == 1
    init.write_text(text)
    return folder


def test_train_evaluate_and_report_as_jobs(
    cluster: tuple[str, dict[str, str]], working_dir: Path, tmp_path: Path
) -> None:
    dashboard, environment = cluster
    corpus, runs = tmp_path / "corpus", tmp_path / "runs"
    made = youtube8m.Config(num_videos=300, num_classes=12, rgb_size=24, audio_size=8)
    youtube8m.generate(corpus, made, lambda done, total: None)
    run = {
        "name": "job",
        "out": str(runs),
        "task": "video_classification",
        "dataset": {
            "name": "youtube8m",
            "path": str(corpus),
            "level": "video",
            "num_classes": 12,
            "features": {"mean_rgb": 24, "mean_audio": 8},
            "class_names_file": str(corpus / "vocabulary.csv"),
        },
        "prepare": {"out": str(tmp_path / "prepared")},
        "model": "logistic",
        "train": {"epochs": 2, "batch_size": 50, "precision": "fp32", "log_every_steps": 1},
        "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
    }
    (working_dir / "tiny.yaml").write_text(yaml.safe_dump(run))

    def submit(*entrypoint: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "ray"), "job", "submit", "--address", dashboard, "--working-dir", str(working_dir), "--"]
        return subprocess.run([*command, *entrypoint], env=environment, capture_output=True, text=True, timeout=240)

    def succeed(*entrypoint: str) -> str:
        done = submit(*entrypoint)
        assert done.returncode == 0, f"{' '.join(entrypoint)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    run_dir = runs / "job"
    succeed("python", "jobs/train.py", "tiny.yaml")
    assert [line["step"] for line in read_log(run_dir) if line["event"] == "step"] == list(range(1, 9))
    losses = [line["train/loss"] for line in read_log(run_dir) if line["event"] == "epoch"]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert json.loads((run_dir / "environment.json").read_text())["mmray"] == SUBMITTED
    assert (run_dir / "checkpoints" / "step-00000008" / "model.safetensors").is_file()

    output = succeed("python", "jobs/evaluate.py", str(run_dir))
    evaluation = json.loads((run_dir / "evaluation" / "test.json").read_text())
    assert evaluation["rows"] == 45
    assert f"gap {evaluation['metrics']['gap']:.4f}" in output

    succeed("python", "jobs/report.py", str(run_dir), "--out", str(tmp_path / "page"))
    page = (tmp_path / "page" / "index.html").read_text()
    assert f"{evaluation['metrics']['gap']:.4f}" in page
    assert SUBMITTED in page

    failed = submit("python", "jobs/train.py", "none.yaml")
    assert failed.returncode == 1
    assert "error: none.yaml: cannot be read" in failed.stdout + failed.stderr
