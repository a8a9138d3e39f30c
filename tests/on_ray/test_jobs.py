"""The scripts of jobs/ as Ray jobs, on a cluster of their own: what is submitted is what runs, to the finished page.

Takes about 75 seconds on 2 CPU cores: the start of Ray's processes, and compiling, as the copy has no cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
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


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; from the system's ephemeral range, which Ray's workers don't use."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def processes_of(mark: str) -> list[int]:
    """The processes that inherited `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile, or is someone else's
            continue
    return found


def is_up(dashboard: str) -> bool:
    try:
        with urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of its own on this machine: the address of its dashboard, and the environment to speak to it from.

    It knows nothing of the Ray that other tests share, and all that it started is gone afterwards.
    """
    mark = f"MMRAY_TEST_CLUSTER={uuid.uuid4().hex}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MMRAY_", "PYTHON"))}
    environment |= {"RAY_AUTH_MODE": "disabled", "PATH": f"{BIN}{os.pathsep}{environment['PATH']}"}
    environment |= dict([mark.split("=")])
    port, dashboard_port, agent_port, client_port = free_ports(4)
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    # Not below pytest's own folder: the names of Ray's sockets would become longer than the system allows.
    with tempfile.TemporaryDirectory(prefix="mmray-", ignore_cleanup_errors=True) as scratch:
        command = [
            str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", "--num-gpus=0",
            f"--port={port}", f"--temp-dir={scratch}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
            f"--dashboard-agent-listen-port={agent_port}", f"--ray-client-server-port={client_port}",
        ]  # fmt: skip
        log = Path(scratch) / "head.log"
        with log.open("w") as output:
            head = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 90
            while not is_up(dashboard):
                assert head.poll() is None, f"ray start ended with status {head.returncode}:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"no dashboard at {dashboard}:\n{log.read_text()}"
                time.sleep(0.2)
            yield dashboard, environment
        finally:
            # Nothing of it needs a farewell; a head that is asked to end would drain its node for many seconds.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait()
            while left := processes_of(mark):  # workers, which have groups of their own
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)


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
