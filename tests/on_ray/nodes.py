"""Clusters of several nodes for tests: a head that trains nothing, and nodes that come and go, each a `ray start`.

What runs on them are commands of mmray as processes of their own, so that the Ray that other tests share in this
process knows nothing of it. Test modules get the fixture `nodes` by `pytest_plugins = ["nodes"]`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from heads import Head, started

from mmray import config, prepared
from mmray.datasets.synthetic import youtube8m
from mmray.on_ray.up import free_ports, processes_of
from mmray.tasks import build
from mmray.training import feed, run_folder
from mmray.training.context import Context
from mmray.training.loop import fit
from mmray.training.run_folder import read_log

CORPUS = youtube8m.Config(num_videos=1201, num_classes=12, rgb_size=24, audio_size=8, videos_per_shard=150)
WAIT_S = 600  # for what takes seconds on a machine that has nothing else to do


def wait_for(what: Callable[[], Any], doing: str | Callable[[], str]) -> Any:
    """What it gives, once that is something; `doing` is said where it never is."""
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {doing if isinstance(doing, str) else doing()}"
        time.sleep(0.05)
    return found


@dataclass
class Node:
    """A node as a process: `ray start --block`, and what it has started."""

    process: subprocess.Popen[bytes]
    mark: str
    ray_id: str = ""

    def workers(self) -> list[int]:
        """The training workers on it."""
        return [pid for pid in processes_of(self.mark) if b"RayTrainWorker" in command_of(pid)]

    def kill(self) -> None:
        """End it as a power cut does."""
        for pid in [self.process.pid, *processes_of(self.mark)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def command_of(pid: int) -> bytes:
    """The command line of a process, under the title that Ray gives it; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@dataclass
class Nodes:
    """A head without CPUs, and its nodes by the names that a test gives them."""

    head: Head
    of: dict[str, Node] = field(default_factory=dict)

    def add(self, name: str, cpus: int = 1, labels: str = "", custom: dict[str, float] | None = None) -> Node:
        """Start a node and wait until the cluster has it."""
        before, mark = set(self.alive()), f"MMRAY_TEST_NODE={name}-{time.time_ns()}"
        (agent,) = free_ports(1)
        command = [
            self.head.ray, "start", f"--address=127.0.0.1:{self.head.gcs_port}", "--block", f"--num-cpus={cpus}",
            "--num-gpus=0", "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={agent}",
            "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=100000000", "--disable-usage-stats",
            f"--resources={json.dumps(custom or {})}", *([f"--labels={labels}"] if labels else []),
        ]  # fmt: skip
        log = self.head.scratch / f"node-{name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                env=self.head.environment | dict([mark.split("=")]),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = self.of[name] = Node(process, mark)
        (node.ray_id,) = wait_for(lambda: set(self.alive()) - before, lambda: f"node {name}: {log.read_text()}")
        return node

    def have(self, *names: str) -> None:
        """Have these nodes of one CPU, and no other."""
        if others := self.of.keys() - set(names):
            self.end(*others)
        for name in names:
            if name not in self.of:
                self.add(name)

    def end(self, *names: str) -> None:
        """Kill nodes, and wait until the cluster knows it."""
        gone = [self.of.pop(name) for name in names]
        for node in gone:
            node.kill()
        wait_for(lambda: not set(self.alive()) & {node.ray_id for node in gone}, f"the end of {names}")

    def alive(self) -> dict[str, dict[str, float]]:
        """Nodes with CPUs that the cluster has, by Ray's ids: what they have."""
        nodes = self.listed("nodes")
        return {
            n["node_id"]: n["resources_total"]
            for n in nodes
            if n["state"] == "ALIVE" and n["resources_total"].get("CPU")
        }

    def listed(self, kind: str) -> list[dict[str, Any]]:
        """What Ray's own dashboard tells of nodes, tasks or actors."""
        with urllib.request.urlopen(f"{self.head.url}/api/v0/{kind}?limit=10000&detail=1", timeout=30) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]["result"]
        return found

    def name_of(self, ray_id: str) -> str:
        """The name that the test gave a node."""
        return next((name for name, node in self.of.items() if node.ray_id == ray_id), ray_id)

    def begin(self, verb: str, run: config.Run) -> subprocess.Popen[str]:
        """Start `mmray VERB` of a run on this cluster."""
        path = Path(run.out).parent / f"{run.name}.yaml"
        path.write_text(run.to_yaml())
        return subprocess.Popen(
            [sys.executable, "-c", "from mmray.cli import main; main()", verb, str(path)],
            env=self.head.environment
            | {"RAY_ADDRESS": f"127.0.0.1:{self.head.gcs_port}", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def do(self, verb: str, run: config.Run) -> str:
        """The output of `mmray VERB` of a run, which must succeed."""
        return ended(self.begin(verb, run))


def ended(process: subprocess.Popen[str]) -> str:
    """The output of a command that must succeed."""
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """A head for all tests that ask for it; which nodes it has is up to each."""
    with started(None, cpus=0) as head:
        yield Nodes(head)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all nodes see, with a corpus of 1,201 videos."""
    root = tmp_path_factory.mktemp("shared")
    youtube8m.generate(root / "corpus", CORPUS, lambda done, total: None)
    return root


def run_of(root: Path, name: str, **sections: dict[str, Any]) -> config.Run:
    """A small mixture of experts over the corpus; the sections change keys of it."""
    values: dict[str, Any] = {
        "name": name,
        "out": str(root / "runs"),
        "task": "video_classification",
        "dataset": {
            "name": "youtube8m",
            "path": str(root / "corpus"),
            "level": "video",
            "num_classes": CORPUS.num_classes,
            "features": {"mean_rgb": CORPUS.rgb_size, "mean_audio": CORPUS.audio_size},
        },
        "model": {"name": "moe", "num_experts": 2},
        "prepare": {"out": str(root / "prepared"), "part_mb": 1},
        "train": {"epochs": 3, "batch_size": 50, "precision": "fp32", "log_every_steps": 1, "shuffle_mb": 0.03},
        "resources": {"num_workers": 2, "cpus_per_worker": 1},
    }
    for section, change in sections.items():
        values[section] = values.get(section, {}) | change
    return config.from_dict(values)


def undisturbed(run: config.Run) -> list[dict[str, Any]]:
    """The log of the same run in this process, without Ray, on the prepared dataset that is there: the reference."""
    (folder,) = Path(run.prepare.out).glob("youtube8m-*")
    alone = run.model_copy(update={"name": f"{run.name}-alone"})
    info = prepared.read_info(folder)
    context = Context(run_folder.open_run(alone, info))
    task = build(alone, info)
    fit(alone, task, *feed.tables(alone, task, folder, context), context)
    return read_log(alone.run_dir)


def values_of(log: list[dict[str, Any]], key: str = "train/loss", event: str = "step") -> list[float]:
    """One value of each line."""
    return [line[key] for line in log if line["event"] == event]
