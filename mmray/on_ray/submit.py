"""`mmray submit`: a verb as a Ray job. `mmray jobs`: the jobs of a cluster.

The client speaks to the cluster's dashboard over HTTP alone; Python and Ray here need not be those of the cluster. The
job's command is `python -m mmray VERB …` in a working folder that holds the package as it is here and the run file.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmray import config
from mmray.console import say
from mmray.on_ray import runtime
from mmray.on_ray.access import address_of, client
from mmray.on_ray.pins import pins_of
from mmray.on_ray.upload import REQUIREMENTS, Upload

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Packages = Literal["check", "install", "any"]
OnInterrupt = Literal["detach", "stop"]

VERBS = ("prepare", "train", "tune", "predict", "evaluate", "embed", "ensemble", "report")
INTERRUPTED = 130
_FOLDERS = ("run_dir", "run_dirs", "source", "csv_path", "out")  # arguments that are paths
_IS_URL = re.compile(r"[a-z][a-z0-9+.-]+:/")
_PINS = "pins.txt"
_STOP_WAIT_S = 30  # between SIGTERM and SIGKILL of a job that is stopped; Ray's own 3 s are too few for a checkpoint
_FIRST_WAIT_S, _LONGEST_WAIT_S, _GIVE_UP_S = 0.5, 15.0, 600.0  # between tries to reach the cluster again
_KEEPALIVE_S = 20
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|_KEY", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """What is to run: a verb, its arguments as the command line has them, the name of its run, and what it needs."""

    verb: str
    arguments: tuple[str, ...]
    run_name: str
    upload: Upload


def job_of(verb: str, arguments: Sequence[str], values: Mapping[str, Any]) -> Job:
    """A verb's job. `values` are its arguments as the command line understands them: a run file is read and checked.

    ValueError where the run file is wrong, and where a path would lie in the job's working folder, which Ray deletes.
    """
    upload = Upload.of_package()
    if "run_file" in values:
        path = values["run_file"]
        run = config.load(path, values["overrides"])
        name = upload.add_run(path, run)
        return Job(verb, tuple(name if Path(given) == path else given for given in arguments), run.name, upload)
    paths = [str(value) for key in _FOLDERS for value in _each(values.get(key))]
    paths += [value.rpartition("=")[2] for value in _each(values.get("corpus"))]
    if lost := [path for path in paths if not Path(path).is_absolute() and not _IS_URL.match(path)]:
        raise ValueError(
            f"{', '.join(lost)}: relative paths mean nothing in the cluster; name storage that all nodes see "
            f"(s3://…, gs://…, or an absolute path that they share)"
        )
    own = values["out"] if verb == "ensemble" else paths[0]
    return Job(verb, tuple(arguments), Path(str(own)).name, upload)


def submit(
    job: Job,
    address: str | None = None,
    *,
    limit_mb: float = 50,
    packages: Packages = "check",
    variables: Sequence[str] = (),
    detach: bool = False,
    on_interrupt: OnInterrupt = "detach",
) -> int:
    """Run a job in the cluster and show its output; return its exit status, or 0 at once with `detach`.

    `packages`: what of requirements.txt holds in the cluster. `check`: the job refuses to begin where versions differ;
    `install`: Ray installs them for this job; `any`: nothing is looked at. `variables` are NAME=VALUE of its
    environment; a secret among them is refused, as they can be read in the dashboard. ValueError where the upload is
    too large or the cluster can't be reached.
    """
    environment = _environment(job, variables)
    command = _command(job)
    runtime_env: dict[str, Any] = {"env_vars": environment}
    jobs = client(address)
    with tempfile.TemporaryDirectory(prefix="mmray-upload-") as folder:
        if packages != "any" and not REQUIREMENTS.is_file():
            raise ValueError(f"there is no {REQUIREMENTS} to hold the cluster's packages to; give --packages any")
        if packages == "check":
            pins = Path(folder) / _PINS
            pins.write_text("\n".join(pins_of(REQUIREMENTS)) + "\n", encoding="utf-8")
            job.upload.files[_PINS] = pins
            command = f"python -m mmray.on_ray.pins {_PINS} && {command}"
        elif packages == "install":
            job.upload.files[REQUIREMENTS.name] = REQUIREMENTS
            file = f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{REQUIREMENTS.name}"
            runtime_env["pip"] = {"packages": [f"-r {file}"], "pip_check": False}
        job.upload.check(limit_mb)
        working_dir = Path(folder) / "job"
        job.upload.lay_out(working_dir)
        say(f"uploading {job.upload.said()}")
        job_id = _send(jobs, job, command, working_dir, runtime_env)
    say(f"submitted {job_id}")
    at = f"--address {address_of(address)}"
    hint = f"follow it: mmray jobs --follow {job_id} {at}\nstop it:   mmray jobs --stop {job_id} {at}"
    if detach:
        say(hint)
        return 0
    try:
        return follow(jobs, job_id)
    except KeyboardInterrupt:
        if on_interrupt == "stop":
            stop(jobs, job_id)
        else:
            say(f"\n{job_id} goes on\n{hint}")
        return INTERRUPTED


def run_quietly(jobs: JobSubmissionClient, job: Job, command: Sequence[str]) -> tuple[int, str]:
    """Run a command over a job's upload to its end; return its exit status and all that it printed."""
    with tempfile.TemporaryDirectory(prefix="mmray-upload-") as folder:
        working_dir = Path(folder) / "job"
        job.upload.lay_out(working_dir)
        job_id = _send(jobs, job, shlex.join(command), working_dir, {"env_vars": runtime.settings(False)})
    while not (info := jobs.get_job_info(job_id)).status.is_terminal():
        time.sleep(0.5)
    code = info.driver_exit_code
    return (1 if code is None else code), jobs.get_job_logs(job_id) or info.message or ""


def follow(jobs: JobSubmissionClient, job_id: str, write: Callable[[str], Any] | None = None) -> int:
    """Show a job's output, from its beginning to its end, whatever the connection does; return its exit status.

    Where the connection is cut it is made again and what was shown is skipped, for ten minutes without any answer.
    """
    write = write or _print
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        shown += len(text)
        write(text)

    from ray.exceptions import RayError

    waiting = _Patience()
    while True:
        try:
            asyncio.run(_tail(jobs, job_id, shown, show, waiting))
            info = jobs.get_job_info(job_id)
            if info.status.is_terminal():
                show(jobs.get_job_logs(job_id)[shown:])
                return _status(info)
            waiting.reached()
        except RayError as error:  # the token
            raise ValueError(str(error)) from None
        except (OSError, RuntimeError) as error:
            if "status code 4" in str(error):  # an answer, and another try would give the same
                raise ValueError(str(error)) from None
            waiting.failed(error)
        waiting.wait()


def stop(jobs: JobSubmissionClient, job_id: str) -> None:
    """Ask a job to end, and wait until it has; it may take half a minute to write a checkpoint."""
    from ray.exceptions import RayError

    try:
        jobs.stop_job(job_id)
    except (RuntimeError, RayError) as error:
        raise ValueError(f"{job_id} can't be stopped: {error}") from None
    say(f"stopping {job_id}")
    deadline = time.monotonic() + 2 * _STOP_WAIT_S
    while not (info := jobs.get_job_info(job_id)).status.is_terminal():
        if time.monotonic() > deadline:
            raise ValueError(f"{job_id} is still {info.status.value} after {2 * _STOP_WAIT_S} s; look at the dashboard")
        time.sleep(0.5)
    say(f"{job_id}: {info.status.value.lower()}")


def table(jobs: JobSubmissionClient) -> list[dict[str, Any]]:
    """The jobs of a cluster, the newest first: id, status, verb, run, start (local time), and seconds that it took."""
    from ray.job_submission import JobType

    found = []
    for info in jobs.list_jobs():
        if info.type != JobType.SUBMISSION:
            continue
        verb, run = _verb_and_run(info)
        begun = (info.start_time or 0) / 1000
        ended = (info.end_time or 0) / 1000 or time.time()
        found.append(
            {
                "id": info.submission_id,
                "status": info.status.value.lower(),
                "verb": verb,
                "run": run,
                "start": datetime.fromtimestamp(begun).astimezone().isoformat(" ", "seconds") if begun else "",
                "seconds": round(ended - begun) if begun else 0,
            }
        )
    return sorted(found, key=lambda row: row["start"], reverse=True)


def said(rows: Sequence[dict[str, Any]]) -> str:
    """The table in aligned columns."""
    if not rows:
        return "no jobs"
    shown = [[str(value) for value in row.values()] for row in [{key: key for key in rows[0]}, *rows]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(shown[0]))]
    return "\n".join("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)).rstrip() for row in shown)


def _send(jobs: JobSubmissionClient, job: Job, command: str, working_dir: Path, runtime_env: dict[str, Any]) -> str:
    return jobs.submit_job(
        entrypoint=command,
        submission_id=f"{job.verb}-{job.run_name}-{secrets.token_hex(4)}",
        runtime_env=runtime_env | {"working_dir": str(working_dir)},
        metadata={"verb": job.verb, "run": job.run_name},
    )


def _command(job: Job) -> str:
    return f"exec python -m mmray {shlex.join([job.verb, *job.arguments])}"


def _each(value: Any) -> Iterable[Any]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _environment(job: Job, variables: Sequence[str]) -> dict[str, str]:
    """Of the job and all processes that Ray starts for it."""
    speaks = "-v" in job.arguments or "--verbose" in job.arguments
    environment = runtime.settings(speaks) | {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--env {name}: expected NAME=VALUE")
        if _SECRET.search(name):
            raise ValueError(
                f"--env {name} looks like a secret: whoever sees the dashboard could read it; give it to the nodes (an "
                f"instance profile, a Kubernetes secret, the environment of ray start)"
            )
        environment[name] = value
    return environment


class _Patience:
    """How long to wait before the next try to reach a cluster, and when to give up."""

    def __init__(self) -> None:
        self.reached()

    def reached(self) -> None:
        self.since: float | None = None
        self.pause_s = _FIRST_WAIT_S

    def failed(self, error: Exception) -> None:
        if self.since is None:
            self.since = time.monotonic()
            print("connection lost; the job goes on, trying to reach it again", file=sys.stderr, flush=True)
        elif time.monotonic() - self.since > _GIVE_UP_S:
            raise ValueError(f"the cluster has not answered for {_GIVE_UP_S / 60:.0f} minutes: {error}") from None

    def wait(self) -> None:
        time.sleep(self.pause_s)
        self.pause_s = min(2 * self.pause_s, _LONGEST_WAIT_S)


async def _tail(
    jobs: JobSubmissionClient, job_id: str, skip: int, show: Callable[[str], None], waiting: _Patience
) -> None:
    """Show a job's output as it comes, but for the first `skip` characters, until the server or the network ends it.

    Ray's own tail would wait for ever on a connection that is dead without a word; the kernel's keep-alive finds that.
    """
    import aiohttp

    url, headers = f"{jobs.get_address()}/api/jobs/{job_id}/logs/tail", jobs._headers
    try:
        async with aiohttp.ClientSession(headers=headers) as session, session.ws_connect(url, max_msg_size=0) as socket:
            _keep_alive(socket.get_extra_info("socket"))
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    return
                waiting.reached()
                text = message.data[skip:]
                skip = max(0, skip - len(message.data))
                if text:
                    show(text)
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 404:
            raise ValueError(f"the cluster has no job {job_id}; mmray jobs lists them") from None
        raise RuntimeError(f"status code {error.status}: {error.message}") from None
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error)) from None


def _keep_alive(connection: Any) -> None:
    import socket

    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", _KEEPALIVE_S), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        with suppress(AttributeError, OSError):  # other systems have other names for them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _status(info: JobDetails) -> int:
    """The job's own exit status, as a shell has it: 128 + the signal that killed it; 1 where it never began."""
    code: int | None = info.driver_exit_code
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        say("the job was stopped")
        return INTERRUPTED
    if code is None:
        say(f"the job could not run: {info.message}")
        return 1
    return 128 - code if code < 0 else code or 1


def _verb_and_run(info: JobDetails) -> tuple[str, str]:
    """Of a job of `mmray submit`, or of a plain `ray job submit -- python jobs/VERB.py …`."""
    noted = info.metadata or {}
    if "verb" in noted:
        return noted["verb"], noted.get("run", "")
    found = re.search(r"(?:jobs/(\w+)\.py|-m mmray (\w+))\s*(\S*)", info.entrypoint or "")
    return (found[1] or found[2], Path(found[3]).stem) if found else ("", "")


def _print(text: str) -> None:
    print(text, end="", flush=True)
