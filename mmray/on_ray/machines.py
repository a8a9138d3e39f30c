"""The machines of a cluster: those that Ray has, those that its autoscaler may add, or those that a file describes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt

from mmray import config

_BOOTSTRAP = "~/ray_bootstrap_config.yaml"  # which `ray up` leaves on the head, for the autoscaler
_NOT_CUSTOM = ("CPU", "GPU", "memory", "object_store_memory")


class Node(config.Section):
    """`count` equal machines, with their labels and custom resources."""

    cpus: float = Field(gt=0)
    gpus: float = Field(0, ge=0)
    memory_gb: float | None = Field(None, gt=0)
    object_store_gb: float | None = Field(None, gt=0)
    labels: dict[str, str] = Field({})
    custom: dict[str, float] = Field({})
    count: PositiveInt = 1

    def suits(self, place: config.Place) -> bool:
        """Whether it has the labels, and enough of each custom resource for one process."""
        return all(_fits(self.labels.get(name), value) for name, value in place.labels.items()) and all(
            self.custom.get(name, 0.0) >= amount for name, amount in place.custom.items()
        )


class Cluster(config.Section):
    """Machines that Ray has, or that a file describes."""

    nodes: list[Node] = Field(min_length=1)

    @property
    def cpus(self) -> float:
        """Of all machines."""
        return sum(node.cpus * node.count for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all machines."""
        return sum(node.gpus * node.count for node in self.nodes)

    def said(self) -> str:
        """The cluster in a line."""
        return "; ".join(
            f"{node.count:,} x {node.cpus:g} CPUs, {node.gpus:g} GPUs"
            + (f", {node.memory_gb:.1f} GB" if node.memory_gb else "")
            for node in self.nodes
        )

    def at(self, place: config.Place, key: str) -> Cluster:
        """The machines that suit a place, which the run file has under `key`; ValueError where there is none."""
        nodes = [node for node in self.nodes if node.suits(place)]
        if nodes:
            return Cluster(nodes=nodes)
        wanted = {name: value for name, value in place.model_dump(include={"labels", "custom"}).items() if value}
        have = sorted({f"{n}: {v}" for node in self.nodes for n, v in (node.labels | node.custom).items()})
        raise ValueError(
            f"{key}: no machine has {wanted}; those of the cluster have {', '.join(have) or 'neither'}. Change it, or "
            f"start nodes with them: ray start --labels=NAME=VALUE --resources='{{\"NAME\": 1}}'"
        )

    def slots(self, cpus: float, gpus: float, memory_gb: float, custom: dict[str, float] | None = None) -> int:
        """How many processes that each need so much fit, each on one machine."""
        return sum(
            node.count
            * min(
                _times(node.cpus, cpus),
                _times(node.gpus, gpus),
                _times(node.memory_gb, memory_gb) if node.memory_gb else _MANY,
                *(_times(node.custom.get(name, 0.0), amount) for name, amount in (custom or {}).items()),
            )
            for node in self.nodes
        )


_MANY = 10**9


def _times(has: float, needs: float) -> int:
    return math.floor(has / needs + 1e-6) if needs else _MANY


def _fits(value: str | None, wanted: str) -> bool:
    """As Ray's label selectors go: a leading `!` stands for any other value, or none."""
    return value != wanted[1:] if wanted.startswith("!") else value == wanted


def read_cluster(path: Path) -> Cluster:
    """A cluster from a YAML file: `nodes: [{count: 100, cpus: 64, gpus: 8, memory_gb: 512, labels: {pool: gpu}}]`."""
    values = _yaml(path)
    return config.section_from_dict(Cluster, values if isinstance(values, dict) else {"nodes": values}, where=str(path))


def cluster_of_ray() -> Cluster:
    """The machines of the cluster that this process is connected to, with those that its autoscaler may add.

    What an autoscaler may add, Ray does not tell. It is read from where `ray up` has left it on the head; elsewhere, as
    on Kubernetes, the environment's MMRAY_CLUSTER names a file that describes the whole cluster: see `read_cluster`.
    """
    if described := os.environ.get("MMRAY_CLUSTER"):
        return read_cluster(Path(described))
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    bootstrap, may_come = Path(_BOOTSTRAP).expanduser(), []
    if "RAY_ADDRESS" in os.environ and bootstrap.exists():
        alive = [node for node in alive if "node:__internal_head__" in node["Resources"]]
        may_come = autoscaled(_yaml(bootstrap))
    if not alive and not may_come:
        raise ValueError("the cluster has no machine with a CPU; start one: ray start --address=...")
    return Cluster(nodes=_counted(map(_node_of, alive)) + may_come)


def autoscaled(values: dict[str, Any]) -> list[Node]:
    """The workers that a cluster file of `ray up` allows."""
    nodes = []
    for name, kind in values["available_node_types"].items():
        has = kind.get("resources", {})
        count = min(kind.get("max_workers", values["max_workers"]), values["max_workers"])
        if name == values["head_node_type"] or not count or not has.get("CPU"):
            continue
        nodes.append(
            Node(
                cpus=has["CPU"],
                gpus=has.get("GPU", 0),
                memory_gb=has.get("memory", 0) / 2**30 or None,
                labels={"ray.io/node-group": name} | kind.get("labels", {}),
                custom={name: amount for name, amount in has.items() if name not in _NOT_CUSTOM},
                count=count,
            )
        )
    return nodes


def _node_of(node: dict[str, Any]) -> Node:
    """A machine as `ray.nodes()` describes it."""
    has = node["Resources"]
    memory, store = has.get("memory", 0.0), has.get("object_store_memory", 0.0)
    return Node(
        cpus=has["CPU"],
        gpus=has.get("GPU", 0.0),
        # What Ray calls memory leaves out its object store, which is memory all the same.
        memory_gb=(memory + store) / 2**30 or None,
        object_store_gb=store / 2**30 or None,
        labels={name: value for name, value in node.get("Labels", {}).items() if name != "ray.io/node-id"},
        custom={name: amount for name, amount in has.items() if name not in _NOT_CUSTOM and ":" not in name},
    )


def _counted(nodes: Any) -> list[Node]:
    """Equal machines as one, with their number."""
    counts: dict[str, tuple[Node, int]] = {}
    for node in nodes:
        key = node.model_dump_json()
        counts[key] = node, counts.get(key, (node, 0))[1] + 1
    return [node.model_copy(update={"count": count}) for node, count in counts.values()]


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
