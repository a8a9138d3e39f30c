"""Clusters of their own for tests: each a head node on this machine, and all that it started is gone afterwards.

It knows nothing of the Ray that other tests share. Test modules get the fixture `head` by `pytest_plugins = ["heads"]`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mmray.on_ray.up import free_ports, head_command, is_up, processes_of

PROJECT = Path(__file__).parent.parent.parent


@dataclass
class Head:
    """A running head node: its dashboard, its token, the environment to speak to it from, and where its files are."""

    url: str
    gcs_port: int
    token: str | None = field(repr=False)
    environment: dict[str, str] = field(repr=False)
    scratch: Path
    ray: str

    def add_node(self, cpus: int = 1) -> None:
        """A further node on this machine, with ports and a folder of its own; it ends with the head."""
        (agent,) = free_ports(1)
        command = [
            self.ray, "start", f"--address=127.0.0.1:{self.gcs_port}", "--block", f"--num-cpus={cpus}", "--num-gpus=0",
            "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats",
            # Each node unpacks what jobs bring anew, also over what another has in the same folder.
            f"--temp-dir={self.scratch / str(agent)}",
        ]  # fmt: skip
        log = self.scratch / f"node-{agent}.log"
        for _ in range(3):  # Ray gives up after 30 s, which a machine that others use too may need
            with log.open("w") as output:
                node = subprocess.Popen(
                    command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            while node.poll() is None:
                if "Ray runtime started" in log.read_text():
                    return
                time.sleep(0.2)
        raise AssertionError(log.read_text())


@contextmanager
def started(token: str | None, cpus: int = 2, **variables: str) -> Iterator[Head]:
    """A head node, protected by a token or not. `variables` are added to the environment of all its processes."""
    mark = f"MMRAY_TEST_CLUSTER={uuid.uuid4().hex}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MMRAY_", "PYTHON"))}
    environment |= (
        {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    )
    # Not below pytest's own folder: the names of Ray's sockets would become longer than the system allows.
    with tempfile.TemporaryDirectory(prefix="mmray-", ignore_cleanup_errors=True) as scratch:
        (port,) = free_ports(1)
        command = head_command(scratch, port, cpus, 0)
        environment["PATH"] = f"{Path(command[0]).parent}{os.pathsep}{environment['PATH']}"
        gcs_port = next(int(part.removeprefix("--port=")) for part in command if part.startswith("--port="))
        found = Head(f"http://127.0.0.1:{port}", gcs_port, token, environment, Path(scratch), command[0])
        log = Path(scratch) / "head.log"
        with log.open("w") as output:
            node = subprocess.Popen(
                command,
                env=environment | variables | dict([mark.split("=")]),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        environment.update([mark.split("=")])  # further nodes have it too
        try:
            deadline = time.monotonic() + 180
            while not is_up(found.url, token):
                assert node.poll() is None, f"ray start ended with status {node.returncode}:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"no dashboard at {found.url}:\n{log.read_text()}"
                time.sleep(0.2)
            yield found
        finally:
            # Nothing of it needs a farewell; a head that is asked to end would drain its node for many seconds.
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
            while left := processes_of(mark):  # workers, which have groups of their own
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A token-protected head node, one for all tests that ask for it, with a secret in its environment."""
    with started(uuid.uuid4().hex * 2, AWS_SECRET_ACCESS_KEY=f"secret-{uuid.uuid4().hex}") as found:
        yield found


@pytest.fixture
def as_its_user(head: Head, monkeypatch: pytest.MonkeyPatch) -> Head:
    """This process holds the head's token, as its user does."""
    assert head.token
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return head
