"""S3's own protocol: uploads in parts, a slow and a failing server, killed writers, and a whole path on s3://."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_proxy import FaultyProxy, faulty_proxy

from mmray import files, storage, stores
from mmray.storage import at

PARTS_MB = 24  # more than two of the parts that an upload is made of


@pytest.fixture
def s3(s3_server: Any, tmp_path: Path) -> Path:
    """A place of the test's own."""
    return at(s3_server.url) / tmp_path.name


@pytest.fixture
def proxy(s3_server: Any, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    with faulty_proxy(s3_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        monkeypatch.setattr(stores, "_FIRST_DELAY_S", 0.02)
        yield proxy


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(np.random.default_rng(0).bytes(PARTS_MB << 20))
    return path


def head(server: Any, path: Path) -> dict[str, Any] | None:
    """What the server itself says of an object."""
    import boto3
    from botocore.exceptions import ClientError

    bucket, _, key = str(path).removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=server.environment["AWS_ENDPOINT_URL"])
    try:
        found: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
    except ClientError:
        return None
    return found


def parts(proxy: FaultyProxy) -> int:
    return sum(method == "PUT" and "partNumber" in path for method, path in proxy.seen)


def test_a_large_file_goes_up_in_parts_and_appears_whole(
    s3_server: Any, s3: Path, proxy: FaultyProxy, large: Path
) -> None:
    there = []

    def look(method: str, path: str) -> None:
        if "partNumber=2" in path:
            there.append(head(s3_server, s3 / "large"))

    proxy.fault = look
    with files.written_whole(s3 / "large") as aside:
        aside.write_bytes(large.read_bytes())
    assert there == [None]
    found = head(s3_server, s3 / "large")
    assert found is not None
    assert found["ContentLength"] == PARTS_MB << 20
    assert "-" in found["ETag"]  # which S3 gives to what came in parts
    assert (s3 / "large").read_bytes() == large.read_bytes()
    with storage.fetched(s3 / "large") as here:
        assert here.read_bytes() == large.read_bytes()


def test_a_server_that_is_slow_refuses_and_hangs_up(s3: Path, proxy: FaultyProxy, large: Path) -> None:
    faults = iter(["503"] * 3 + ["reset"] * 2 + [0.3] * 2 + [None, None, "reset", "reset", "503", "503", "reset"])
    proxy.fault = lambda method, path: next(faults, None)
    storage.RemotePath(str(s3 / "large")).upload(large)
    assert (s3 / "large").read_bytes() == large.read_bytes()
    faults = iter(["503", "reset", "503", "503", "reset"])
    with (s3 / "large").open("rb") as file:
        faults = iter(["reset"] * 3 + ["503"] * 2)
        assert file.read(9_000_000) == large.read_bytes()[:9_000_000]
    assert next(faults, None) is None
    faults = iter(["503"] * 4)
    assert [path.name for path in s3.glob("*")] == ["large"]


@pytest.mark.parametrize("refused", ["uploads", "partNumber=1", "partNumber=2", "uploadId"])
def test_an_upload_that_is_refused_on_the_way_leaves_nothing(
    s3_server: Any, s3: Path, proxy: FaultyProxy, large: Path, refused: str
) -> None:
    proxy.fault = lambda method, path: "403" if refused in path else None
    with pytest.raises(PermissionError, match=rf"credentials.*{s3}/large"):
        storage.RemotePath(str(s3 / "large")).upload(large)
    proxy.fault = lambda method, path: None
    time.sleep(0.2)  # what is deleted may still want to say something
    assert head(s3_server, s3 / "large") is None
    assert not (s3 / "large").exists()


def test_patience_with_a_server_ends(s3: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRAY_STORAGE_PATIENCE_S", "0.5")
    proxy.fault = lambda method, path: "503"
    with pytest.raises(OSError, match=rf"MMRAY_STORAGE_PATIENCE_S.*{s3}/x"):
        (s3 / "x").write_text("x")


def test_a_writer_that_is_killed_leaves_nothing(s3_server: Any, s3: Path, proxy: FaultyProxy, large: Path) -> None:
    proxy.fault = lambda method, path: 1.0 if "partNumber" in path else None
    code = f"from mmray.storage import *; at({str(s3 / 'large')!r}).upload(Path({str(large)!r}))"
    writer = subprocess.Popen([sys.executable, "-c", code])
    while not parts(proxy):
        assert writer.poll() is None
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    time.sleep(1.5)  # what the server had got by then
    assert head(s3_server, s3 / "large") is None
    assert not (s3 / "large").exists()
    with pytest.raises(FileNotFoundError):
        (s3 / "large").read_bytes()


def test_processes_keep_apart(s3: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys, time; from mmray import files; from mmray.storage import at; files._RENEW_S = 0.5\n"
        f"with files.locked(at({str(s3 / '.lock')!r}), 'training', wait=True):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another process is training"):
            files.locked(s3 / ".lock", "training", wait=False).__enter__()
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with files.locked(s3 / ".lock", "training", wait=False):  # nobody waits for the dead of this machine
            pass
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_runtime")
def test_a_whole_path_in_a_store_is_that_on_this_machine(s3: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from mmray.cli import cli
    from mmray.training.run_folder import read_log

    def mmray(*arguments: object) -> None:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    def path_in(root: Path) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        mmray("synth", "youtube8m", root / "corpus", "--videos", 900, "--classes", 12)
        run = {
            "task": "video_classification",
            "dataset": {"name": "youtube8m", "path": str(root / "corpus"), "level": "video", "num_classes": 12},
            "model": "logistic",
            "out": str(root / "runs"),
            "prepare": {"out": str(root / "prepared"), "part_mb": 1},
            "train": {"epochs": 3, "batch_size": 64, "checkpoint_every_steps": 4},
        }
        for name, seed in (("one", 0), ("two", 1)):
            file = root / f"{name}.yaml"
            file.write_text(json.dumps({**run, "name": name, "seed": seed}))
            mmray("train", file, "--set", "train.epochs=1")
            mmray("train", file)  # goes on
            mmray("evaluate", root / "runs" / name)
        mmray("ensemble", root / "runs" / "one", root / "runs" / "two", "--out", root / "runs" / "both")
        mmray("report", root / "runs" / "one", root / "runs" / "both")
        assert (root / "runs" / "one" / "report" / "index.html").stat().st_size > 10_000
        log = [
            {key: value for key, value in line.items() if "/" in key or key in ("event", "step")}
            for line in read_log(root / "runs" / "one")
        ]
        scores = [json.loads((root / f"runs/{name}/evaluation/test.json").read_text()) for name in ("one", "both")]
        return log, scores[0]["metrics"], scores[1]["metrics"]

    tmp_path.mkdir(exist_ok=True)
    assert path_in(s3) == path_in(tmp_path)
