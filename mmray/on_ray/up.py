"""`mmray up --local`: a cluster of this machine alone, which nobody can use without its token.

A plain `ray start --head` would do too, given a token file that only its owner may read, the mode of authentication, a
folder and ports of its own; and `ray stop` ends all that Ray runs on the machine, whoever began it. This ends what it
began and nothing else. The dashboard, which takes jobs, listens on loopback; Ray's internal ports listen everywhere,
as Ray has it, and ask for the token.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

from mmray.console import say
from mmray.on_ray.access import own_token_file, token

_START_S = 180
_FAREWELL_S = 2
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up_local(port: int, cpus: int | None = None, gpus: int | None = None) -> int:
    """Run a head node until SIGINT or SIGTERM; return the exit status. ValueError where it can't be started."""
    environment = environment_of_head()
    url = f"http://127.0.0.1:{port}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ValueError(f"something listens on port {port} already; choose another --port, or use what is there")
    # Not Ray's own /tmp/ray, by which other programs would find this cluster and join it.
    with tempfile.TemporaryDirectory(prefix="mmray-", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch) / "head.log"
        command = head_command(scratch, port, cpus, gpus)
        asked: list[int] = []
        before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in _ENDS}
        with log.open("w") as output:
            head = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            deadline = time.monotonic() + _START_S
            while not asked and not is_up(url, environment.get("RAY_AUTH_TOKEN") or token()):
                if head.poll() is not None or time.monotonic() > deadline:
                    raise ValueError(f"Ray could not be started:\n{log.read_text(errors='replace').strip()}")
                time.sleep(0.2)
            if not asked:
                _greet(url)
            while not asked and head.poll() is None:
                time.sleep(0.2)
        finally:
            end(head, environment["MMRAY_UP"])
            for number, handler in before.items():
                signal.signal(number, handler)
        if not asked:
            say(f"Ray ended by itself with status {head.returncode}:\n{log.read_text(errors='replace').strip()}")
            return 1
        say("ended")
        return 0


def environment_of_head() -> dict[str, str]:
    """What a token-protected head node is started with; the token file is made if need be."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Ray's many processes would compile everything anew
    environment |= {"RAY_AUTH_MODE": "token", "MMRAY_UP": uuid.uuid4().hex}
    if not environment.get("RAY_AUTH_TOKEN"):
        environment["RAY_AUTH_TOKEN_PATH"] = str(own_token_file())
    return environment


def head_command(scratch: str, port: int, cpus: int | None = None, gpus: int | None = None) -> list[str]:
    """`ray start` of a head node on loopback, on ports that are free now."""
    own = Path(sys.executable).parent / "ray"
    gcs, agent, client = free_ports(3)
    return [
        str(own) if own.is_file() else shutil.which("ray") or "ray",
        "start", "--head", "--block", "--disable-usage-stats", f"--temp-dir={scratch}",
        "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}",
        *([] if cpus is None else [f"--num-cpus={cpus}"]),
        *([] if gpus is None else [f"--num-gpus={gpus}"]),
    ]  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; from the system's ephemeral range, which Ray's workers don't use."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def is_up(url: str, held: str | None) -> bool:
    """Whether a dashboard takes jobs there."""
    headers = {"Authorization": f"Bearer {held}"} if held else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/api/jobs/", headers=headers), timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def end(head: subprocess.Popen[bytes], mark: str) -> None:
    """End a head node and all that has `mark` in its environment: what it has started, in whatever session."""
    with suppress(ProcessLookupError):
        head.terminate()
    with suppress(subprocess.TimeoutExpired):
        head.wait(_FAREWELL_S)
    while left := processes_of(mark):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        head.poll()  # a child that has ended stays in the list until it is asked for


def processes_of(mark: str) -> list[int]:
    """The processes that inherited `mark` in their environment, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is someone else's
            if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def _greet(url: str) -> None:
    where = "of RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else f"in {own_token_file()}"
    say(
        f"a cluster of this machine is up at {url}, for programs on it that know the token {where}\n"
        f"  mmray submit train RUN.yaml --address {url}    with absolute paths, or s3:// and gs://\n"
        f"  mmray jobs --address {url}\n"
        f"  mmray doctor --address {url}\n"
        f"Ctrl-C here, or `kill {os.getpid()}`, ends it, and nothing else"
    )
