"""What is promised in SECURITY.md: nothing untrusted is unpickled, and no secret is written down."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from mmray.datasets.synthetic import youtube8m
from mmray.on_ray import submit
from mmray.on_ray.access import client
from mmray.on_ray.up import processes_of

if TYPE_CHECKING:
    from heads import Head

pytest_plugins = ["heads"]

PROJECT = Path(__file__).parent.parent.parent
SOURCES = sorted([*(PROJECT / "mmray").rglob("*.py"), *(PROJECT / "jobs").glob("*.py")])
UNPICKLE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


# Nothing untrusted is unpickled


def unsafe(source: str) -> Iterator[tuple[int, str]]:
    """Lines that read pickles or run what they read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if found := {name.partition(".")[0] for name in names} & UNPICKLE:
                yield node.lineno, f"imports {found.pop()}"
        if not isinstance(node, ast.Call):
            continue
        called, keys = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
        if (
            called in ("torch.load", "load_url", "torch.hub.load_state_dict_from_url")
            and keys.get("weights_only") != "True"
        ):
            yield node.lineno, f"{called} without weights_only=True"
        if keys.get("allow_pickle", "False") != "False":
            yield node.lineno, f"{called} with allow_pickle"
        if called in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "pd.read_pickle", "pandas.read_pickle"):
            yield node.lineno, called
        if called == "yaml.load" and "Loader" not in keys:
            yield node.lineno, "yaml.load without a loader"
        if keys.get("shell") == "True":
            yield node.lineno, f"{called} through a shell"
        if keys.get("trust_remote_code", "False") != "False":
            yield node.lineno, f"{called} runs code that it downloads"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "subprocess.run(command, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_what_is_unsafe_is_found(source: str) -> None:
    assert list(unsafe(source))


def test_what_is_safe_is_left_alone() -> None:
    assert not list(unsafe("torch.load(path, weights_only=True); np.load(path); np.load(path, allow_pickle=False)"))


def test_nothing_untrusted_is_unpickled_or_run() -> None:
    assert len(SOURCES) > 100
    found = [f"{path.name}:{line}: {what}" for path in SOURCES for line, what in unsafe(path.read_text())]
    assert found == []


# No secret is written down


@pytest.mark.ray
def test_no_secret_of_the_environment_is_in_logs_or_lists(as_its_user: Head) -> None:
    """A job that has the head's secrets in its environment, as all jobs do, and says nothing of them."""
    jobs = client(as_its_user.url)
    job_id = jobs.submit_job(entrypoint='test -n "$AWS_SECRET_ACCESS_KEY" && echo it is there')
    shown: list[str] = []
    assert submit.follow(jobs, job_id, shown.append) == 0
    assert "it is there" in "".join(shown)
    secrets = secrets_of(as_its_user)
    listed = submit.said(submit.table(jobs)) + repr(jobs.list_jobs())
    assert not [secret for secret in secrets if secret in listed or secret in "".join(shown)]
    assert holding(as_its_user.scratch, secrets) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.e2e
def test_no_secret_is_in_anything_that_a_run_writes(head: Head, tmp_path: Path) -> None:
    """Two minutes: a run from its preparation to its page, submitted with secrets at both ends."""
    made = youtube8m.Config(num_videos=120, num_classes=12, rgb_size=24, audio_size=8)
    youtube8m.generate(tmp_path / "corpus", made, lambda done, total: None)
    run = {
        "name": "run",
        "out": str(tmp_path / "runs"),
        "task": "video_classification",
        "dataset": {
            "name": "youtube8m", "path": str(tmp_path / "corpus"), "level": "video", "num_classes": 12,
            "features": {"mean_rgb": 24, "mean_audio": 8},
        },
        "prepare": {"out": str(tmp_path / "prepared")},
        "model": "logistic",
        "train": {"epochs": 1, "batch_size": 20, "precision": "fp32"},
        "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    own = {"AWS_SECRET_ACCESS_KEY": "secret-of-the-one-who-submits"}
    environment = head.environment | own | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])}
    for arguments in (["train", "run.yaml"], ["evaluate", f"{tmp_path}/runs/run"], ["report", f"{tmp_path}/runs/run"]):
        command = [sys.executable, "-m", "mmray", "submit", *arguments, "--address", head.url]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (tmp_path / f"{arguments[0]}.txt").write_text(done.stdout + done.stderr)
    secrets = [*secrets_of(head), *own.values()]
    assert (tmp_path / "runs" / "run" / "report" / "index.html").is_file()
    assert holding(tmp_path, secrets) == []
    assert holding(head.scratch, secrets) == []


def secrets_of(head: Head) -> list[str]:
    """The token, and the secret that only the head's own processes have in their environment."""
    assert head.token
    for pid in processes_of(head.environment["MMRAY_TEST_CLUSTER"]):
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
        if found := re.search(r"AWS_SECRET_ACCESS_KEY=(secret-\w+)", text):
            return [head.token, found[1]]
    raise AssertionError("the head has no secret in its environment")


def holding(folder: Path, secrets: list[str]) -> list[str]:
    """The files below a folder that hold one of the secrets."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and any(secret.encode() in path.read_bytes() for secret in secrets)
    ]


# A cluster of this machine alone


@pytest.mark.ray
def test_up_local_lets_in_who_has_the_token_and_ends_what_it_began(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "token"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(file), "MMRAY_TEST_UP": tmp_path.name}
    command = [sys.executable, "-m", "mmray", "up", "--local", "--port", str(port), "--cpus", "1", "--gpus", "0"]
    up = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout is not None
        first = up.stdout.readline()
        assert f"http://127.0.0.1:{port}" in first
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() not in first
        assert len(processes_of(f"MMRAY_TEST_UP={tmp_path.name}")) > 3
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_AUTH_MODE", "token")
            patch.delenv("RAY_AUTH_TOKEN", raising=False)
            patch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
            assert submit.table(client(f"http://127.0.0.1:{port}")) == []
            patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
            with pytest.raises(ValueError, match="asks for a token"):
                client(f"http://127.0.0.1:{port}")
        assert listens_elsewhere(port) == []
        up.terminate()
        assert up.wait(60) == 0
    finally:
        up.kill()
        up.wait()
    assert processes_of(f"MMRAY_TEST_UP={tmp_path.name}") == []


def listens_elsewhere(port: int) -> list[str]:
    """The addresses, other than loopback, that something listens on at this port."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    found = [parts[1] for parts in lines if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port]
    assert found
    return [address for address in found if not address.startswith("0100007F")]
