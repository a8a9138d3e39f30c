"""What can be known of machines: of this one, and of every node of a cluster.

`python -m mmray.on_ray.facts` runs in a cluster as a job of `mmray doctor`; it prints one line of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmray.on_ray.pins import differences

PREFIX = "mmray-doctor: "
_PROBE_BYTES = 8 << 20
_PINGS = 3
_ASK_TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count(), "error": ""}
try:
    if found["gpus"] or torch.version.cuda:
        torch.zeros(1, device="cuda")
except Exception as error:
    found["error"] = str(error).strip().splitlines()[0]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Torch:
    """What PyTorch says of itself and of the GPUs that it can use; `error` is why it can't."""

    version: str
    cuda: str | None
    gpus: int
    error: str


@dataclass(frozen=True)
class Probe:
    """What a storage did with a few MB: MB/s both ways, or what went wrong."""

    url: str
    write_mb_s: float = 0.0
    read_mb_s: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Machine:
    """A machine. Sizes are in bytes; `unlike_pins` says which packages are not those of requirements.txt.

    `gpus` are those that the NVIDIA driver has, whatever Ray and PyTorch make of them. Of a node of a cluster, `ray`
    has its resources, and `ahead_s` how far its clock is ahead of the head node's, to within `ahead_within_s`.
    """

    name: str
    python: str
    torch: Torch | None
    unlike_pins: list[str]
    driver: str | None
    gpus: int
    memory: int
    shm: int
    disk_total: int
    disk_free: int
    open_files: int
    compiles_anew: bool
    probe: Probe | None = None
    ray: dict[str, float] = field(default_factory=dict)
    ahead_s: float = 0.0
    ahead_within_s: float = 0.0


def of_machine(pins: list[str], storage: str | None = None) -> Machine:
    """Of this machine; with `storage`, a few MB are written there, read and deleted."""
    disk = shutil.disk_usage(tempfile.gettempdir())
    return Machine(
        name=platform.node(),
        python=platform.python_version(),
        torch=_torch(),
        unlike_pins=differences(pins),
        driver=_driver(),
        gpus=len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        memory=_memory(),
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        disk_total=disk.total,
        disk_free=disk.free,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        compiles_anew=_compiles_anew(),
        probe=None if storage is None else probe(storage),
    )


def probe(url: str) -> Probe:
    """Write, read and delete a few MB in a folder of a storage."""
    os.environ.setdefault("MMRAY_STORAGE_PATIENCE_S", "10")
    from mmray import storage

    content = secrets.token_bytes(_PROBE_BYTES)
    try:
        folder = storage.at(url)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".mmray-doctor-{secrets.token_hex(8)}"
        begun = time.perf_counter()
        try:
            path.write_bytes(content)
            written = time.perf_counter()
            same = path.read_bytes() == content
            read = time.perf_counter()
        finally:
            path.unlink(missing_ok=True)
    except Exception as error:  # whatever a store's library raises is what is to be told
        return Probe(url, error=f"{type(error).__name__}: {error}")
    size_mb = _PROBE_BYTES / 1e6
    return Probe(url, size_mb / (written - begun), size_mb / (read - written), "" if same else "other bytes came back")


def of_cluster(pins: list[str], storage: str | None = None) -> list[Machine]:
    """Of every node of the cluster that this process runs in, the head first. Tasks that take no CPU look at them."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init("auto", logging_level="ERROR", log_to_driver=False)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: "node:__internal_head__" not in node["Resources"])
    found = []
    look, clock = ray.remote(num_cpus=0)(_look), ray.remote(num_cpus=0)(_now)
    asked = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked.append((node, there, look.options(scheduling_strategy=there).remote(pins, storage)))
    for node, there, answer in asked:
        machine = Machine(**_nested(ray.get(answer)))
        ahead = min((_ahead(ray, clock.options(scheduling_strategy=there)) for _ in range(_PINGS)), key=lambda a: a[1])
        here = {"name": node["NodeManagerHostname"], "ray": _plain(node["Resources"])}
        found.append(Machine(**vars(machine) | here | {"ahead_s": ahead[0], "ahead_within_s": ahead[1]}))
    return found


def read(text: str) -> list[Machine] | None:
    """The machines that a job's output holds; None where it holds none."""
    lines = [line.removeprefix(PREFIX) for line in text.splitlines() if line.startswith(PREFIX)]
    return [Machine(**_nested(values)) for values in json.loads(lines[-1])] if lines else None


def _look(pins: list[str], storage: str | None) -> dict[str, Any]:
    return asdict(of_machine(pins, storage))


def _now() -> float:
    return time.time()


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    torch, probed = values["torch"], values["probe"]
    return values | {"torch": Torch(**torch) if torch else None, "probe": Probe(**probed) if probed else None}


def _ahead(ray: Any, clock: Any) -> tuple[float, float]:
    """How far another clock is ahead of this one, and how exactly that is known: half the way there and back."""
    asked = time.time()
    there = ray.get(clock.remote())
    answered = time.time()
    return there - (asked + answered) / 2, (answered - asked) / 2


def _plain(resources: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in resources.items() if ":" not in key}


def _torch() -> Torch | None:
    """Asked in a process of its own, which sees all GPUs: Ray hides them from whoever has asked for none."""
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", _ASK_TORCH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return Torch(**json.loads(done.stdout)) if done.returncode == 0 else None


def _driver() -> str | None:
    try:
        found = re.search(r"Kernel Module\D*(\d+[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[1] if found else None


def _memory() -> int:
    """Of the container, where this is one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _compiles_anew() -> bool:
    """Whether Ray's many processes would each compile all that they import: no .pyc files, and none are written."""
    found = importlib.util.find_spec("ray.train")
    if found is None or found.origin is None:
        return False
    compiled = Path(importlib.util.cache_from_source(found.origin))
    return not compiled.exists() and (
        bool(os.environ.get("PYTHONDONTWRITEBYTECODE")) or not os.access(compiled.parent.parent, os.W_OK)
    )


def main() -> None:
    """Print the facts of all nodes; the arguments are a file of pins, and a storage if one is to be tried."""
    pins = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    machines = of_cluster(pins, sys.argv[2] if len(sys.argv) > 2 else None)
    print(PREFIX + json.dumps([asdict(machine) for machine in machines]), flush=True)


if __name__ == "__main__":
    main()
