"""`mmray doctor`: what is wrong with this machine, a cluster or a storage, each with its remedy.

A cluster is looked at from within: a job asks every node for its facts (see `facts`), and the storage is tried from
there, with the nodes' own credentials.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mmray.on_ray import facts
from mmray.on_ray.access import client, named
from mmray.on_ray.facts import Machine, Probe
from mmray.on_ray.pins import pins_of
from mmray.on_ray.upload import REQUIREMENTS, Upload

Level = Literal["ok", "warn", "fail"]

_GB = 2**30
_OPEN_FILES = 65536
_STORE_SHARE = 0.3  # of memory, which Ray takes for its object store, in /dev/shm
_FULL, _NEARLY_FULL = 0.95, 0.85  # of the disk; at the first Ray makes no more objects
_LATE_S, _TOO_LATE_S = 2.0, 60.0
_SLOW_MB_S = 5.0
_DRIVER_OF_CUDA = {12: 525, 13: 580}  # of NVIDIA's table of minor-version compatibility


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    where: str
    topic: str
    level: Level
    text: str
    remedy: str = ""


def examine(address: str | None, storage: str | None) -> list[Finding]:
    """Look at this machine, and at the cluster (also of RAY_API_SERVER_ADDRESS) and the storage that are named."""
    address = named(address)
    pins = pins_of(REQUIREMENTS) if REQUIREMENTS.is_file() else []
    here = facts.of_machine(pins, storage if address is None else None)
    found = [*of_machine(here, "here"), *_probed(here, "here")]
    if address is not None:
        found += _of_cluster(address, storage, pins)
    return found


def said(findings: Sequence[Finding], as_json: bool = False) -> str:
    """The report, for people or as JSON."""
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=2)
    lines, where = [], ""
    for finding in findings:
        if finding.where != where:
            where = finding.where
            lines.append(f"{where}:")
        lines.append(f"  {finding.level:<4}  {finding.topic:<12} {finding.text}")
        if finding.remedy:
            lines.append(f"        {'':<12} -> {finding.remedy}")
    return "\n".join(lines)


def of_machine(machine: Machine, where: str) -> Iterator[Finding]:
    """What the facts of one machine mean."""
    yield from _versions(machine, where)
    yield from _gpus(machine, where)
    yield _shared_memory(machine, where)
    used = 1 - machine.disk_free / machine.disk_total
    text = f"{machine.disk_free / _GB:,.1f} GB free of {machine.disk_total / _GB:,.0f} GB"
    level: Level = "fail" if used >= _FULL else "warn" if used >= _NEARLY_FULL else "ok"
    remedy = f"at {_FULL:.0%} Ray makes no more objects: free the disk of its temporary folder, or take a larger one"
    yield Finding(where, "disk", level, text, "" if level == "ok" else remedy)
    few = machine.open_files < _OPEN_FILES
    yield Finding(
        where,
        "open files",
        "warn" if few else "ok",
        f"{machine.open_files:,} at a time",
        f"ulimit -n {_OPEN_FILES} before ray start; of a container, --ulimit nofile={_OPEN_FILES}" if few else "",
    )
    if machine.compiles_anew:
        yield Finding(
            where,
            "bytecode",
            "warn",
            "no compiled modules, and none can be kept: every process of Ray compiles all that it imports",
            "unset PYTHONDONTWRITEBYTECODE, and run python -m compileall on site-packages, once, as its owner",
        )
    else:
        yield Finding(where, "bytecode", "ok", "compiled modules are kept")


def of_nodes(machines: Sequence[Machine]) -> Iterator[Finding]:
    """What the facts of a cluster's nodes mean, each by itself and together. The first is the head."""
    total = {key: sum(machine.ray.get(key, 0) for machine in machines) for key in ("CPU", "GPU")}
    store = sum(machine.ray.get("object_store_memory", 0) for machine in machines) / _GB
    text = f"{len(machines)}, with {total['CPU']:g} CPUs, {total['GPU']:g} GPUs and an object store of {store:,.1f} GB"
    yield Finding("cluster", "nodes", "ok", text)
    for what, versions in {
        "Python": {machine.python for machine in machines},
        "PyTorch": {machine.torch.version if machine.torch else "none" for machine in machines},
    }.items():
        if len(versions) > 1:
            text = f"nodes have {what} {' and '.join(sorted(versions))}"
            yield Finding("cluster", "versions", "fail", text, "set all nodes up from one image or requirements.txt")
    for number, machine in enumerate(machines):
        where = f"node {number} {machine.name}" + (" (head)" if number == 0 else "")
        yield from of_machine(machine, where)
        counted = machine.ray.get("GPU", 0)
        if counted != machine.gpus:
            text = f"Ray counts {counted:g}, the driver has {machine.gpus}"
            yield Finding(where, "GPUs of Ray", "warn", text, "ray start without --num-gpus counts them itself")
        yield _clock(machine, where)
        yield from _probed(machine, where)


def _of_cluster(address: str, storage: str | None, pins: Sequence[str]) -> Iterator[Finding]:
    from mmray.on_ray.submit import Job, run_quietly

    try:
        jobs = client(address)
    except ValueError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding("cluster", "reachable", "fail", what, remedy)
        return
    yield Finding("cluster", "reachable", "ok", address)
    upload = Upload.of_package()
    with tempfile.TemporaryDirectory(prefix="mmray-") as folder:
        file = Path(folder) / "pins.txt"
        file.write_text("\n".join(pins), encoding="utf-8")
        upload.files[file.name] = file
        command = ["python", "-m", "mmray.on_ray.facts", file.name, *([storage] if storage else [])]
        status, output = run_quietly(jobs, Job("doctor", (), "nodes", upload), command)
    machines = facts.read(output)
    if status or machines is None:
        text = "the job that looks at the nodes failed: " + "\n".join(output.strip().splitlines()[-5:])
        yield Finding("cluster", "jobs", "fail", text, "look at the dashboard, or at the job's log in full: mmray jobs")
        return
    yield from of_nodes(machines)


def _versions(machine: Machine, where: str) -> Iterator[Finding]:
    if machine.torch is None:
        yield Finding(where, "versions", "fail", "PyTorch can't be imported", "install requirements.txt")
        return
    text = f"Python {machine.python}, PyTorch {machine.torch.version}"
    if machine.unlike_pins:
        text += f"; unlike requirements.txt: {', '.join(machine.unlike_pins)}"
        yield Finding(where, "versions", "warn", text, "install requirements.txt, or submit with --packages install")
    else:
        yield Finding(where, "versions", "ok", text)


def _gpus(machine: Machine, where: str) -> Iterator[Finding]:
    if not machine.gpus and not machine.driver:
        yield Finding(where, "GPUs", "ok", "none")
        return
    torch, text = machine.torch, f"{machine.gpus} by the driver {machine.driver}"
    if torch is None:
        return
    text += f", {torch.gpus} by PyTorch for CUDA {torch.cuda}" if torch.cuda else ", and a PyTorch for CPUs alone"
    if torch.gpus == machine.gpus and not torch.error:
        yield Finding(where, "GPUs", "ok", text)
        return
    least = _DRIVER_OF_CUDA.get(int(torch.cuda.partition(".")[0])) if torch.cuda else None
    if least and machine.driver and int(machine.driver.partition(".")[0]) < least:
        remedy = f"CUDA {torch.cuda} needs a driver of {least} or newer: renew it, or the machine's image"
    elif torch.cuda is None:
        remedy = "install the PyTorch of requirements.txt, which is built for CUDA"
    else:
        remedy = "a container needs --gpus all, and NVIDIA's container toolkit on its host"
    yield Finding(where, "GPUs", "fail", f"{text}: {torch.error}" if torch.error else text, remedy)


def _shared_memory(machine: Machine, where: str) -> Finding:
    wanted = machine.ray.get("object_store_memory") or _STORE_SHARE * machine.memory
    text = f"{machine.shm / _GB:,.1f} GB in /dev/shm, of {machine.memory / _GB:,.1f} GB memory"
    if machine.ray:
        text += f"; object store {machine.ray.get('object_store_memory', 0) / _GB:,.1f} GB"
    if machine.shm >= wanted:
        return Finding(where, "memory", "ok", text)
    size = f"{wanted / _GB * 1.1:.0f}"
    remedy = (
        f"Ray's object store would be on disk: --shm-size={size}g for a container, emptyDir medium Memory for a pod"
    )
    return Finding(where, "memory", "warn", text, remedy)


def _clock(machine: Machine, where: str) -> Finding:
    ahead = max(0.0, abs(machine.ahead_s) - machine.ahead_within_s)  # what is certain of it
    text = f"{machine.ahead_s:+.3f} s from the head's, to within {machine.ahead_within_s:.3f} s"
    level: Level = "fail" if ahead > _TOO_LATE_S else "warn" if ahead > _LATE_S else "ok"
    remedy = "run chrony or systemd-timesyncd: storage refuses requests from wrong clocks, and logs get out of order"
    return Finding(where, "clock", level, text, "" if level == "ok" else remedy)


def _probed(machine: Machine, where: str) -> Iterator[Finding]:
    if machine.probe is None:
        return
    probe: Probe = machine.probe
    if probe.error:
        remedy = "credentials come from the environment or the machine's role, which must read, write and delete there"
        yield Finding(where, "storage", "fail", f"{probe.url}: {probe.error}", remedy)
        return
    text = f"{probe.url}: writes {probe.write_mb_s:,.0f} MB/s, reads {probe.read_mb_s:,.0f} MB/s"
    slow = min(probe.write_mb_s, probe.read_mb_s) < _SLOW_MB_S
    remedy = "is it in the machines' own region? docs/storage.md says what a run reads"
    yield Finding(where, "storage", "warn" if slow else "ok", text, remedy if slow else "")
