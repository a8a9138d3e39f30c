"""What a run asks of a cluster, and how many trials of a search fit in it: plain arithmetic, before anything starts.

Memory is an estimate from below: the process, weights, gradients, the optimiser's state and the rows that are held.
What a batch needs on its way through the model comes on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmray import config, lookup, tuning
from mmray.console import say
from mmray.on_ray import runtime
from mmray.on_ray.machines import Cluster, cluster_of_ray, read_cluster
from mmray.schema import DatasetInfo
from mmray.tasks import build

_PROCESS_GB = 0.7  # Python with Ray and torch imported
_FEW_ROUNDS = 4
_MAX_VARIANTS = 64  # of the model that are looked at for the largest


@dataclass(frozen=True)
class Plan:
    """How a run, or each trial of a search, is placed: `num_workers` processes that each have the same resources.

    With `resources.min_workers` it begins and goes on with fewer too. `cluster` has the machines that suit it.
    `memory_gb` is that of one process; None where the model can't be built before the corpus is there. `concurrency`
    is how many trials train at a time, of `samples` in all; of a single run both are 1.
    """

    resources: config.Resources
    num_workers: int
    use_gpu: bool
    cpus: float
    num_parameters: int | None
    memory_gb: float | None
    concurrency: int
    samples: int
    cluster: Cluster

    @property
    def worker_resources(self) -> dict[str, float]:
        """Of one process, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": 1.0} if self.use_gpu else {}) | self.resources.train.custom

    @property
    def scaling(self) -> dict[str, Any]:
        """Arguments of Ray Train's ScalingConfig."""
        least = self.resources.min_workers
        return {
            "num_workers": self.num_workers if least is None else (least, self.num_workers),
            "elastic_resize_monitor_interval_s": self.resources.resize_every_s,
            "use_gpu": self.use_gpu,
            "resources_per_worker": self.worker_resources,
            "label_selector": dict(self.resources.train.labels) or None,
        }

    @property
    def threads(self) -> int:
        """Threads of each process on CPUs, so that all processes together have one for each."""
        return max(1, int(self.cluster.cpus / (self.concurrency * self.num_workers)))

    def said(self) -> str:
        """The plan for people, with the arithmetic."""
        size = "" if self.num_parameters is None else f", {self.num_parameters:,} parameters"
        memory = "memory unknown" if self.memory_gb is None else f"{self.memory_gb:.1f} GB or more"
        device = "1 GPU, " if self.use_gpu else ""
        least = self.resources.min_workers
        number = f"{self.num_workers}" if least is None else f"{least} to {self.num_workers}"
        one = f"{number} x ({self.cpus:g} CPU, {device}{memory}){size}"
        lines = [f"cluster: {self.cluster.said()}"]
        if self.samples == 1:
            return "\n".join([*lines, f"workers: {one}"])
        total = self.concurrency * self.num_workers
        rounds = -(-self.samples // self.concurrency)
        used = f"{total * self.cpus:g} of {self.cluster.cpus:g} CPUs"
        used += f", {total:g} of {self.cluster.gpus:g} GPUs" if self.use_gpu else ""
        lines.append(f"trial: {one}{', the largest' if size else ''}")
        lines.append(f"search: {self.samples:,} trials, {self.concurrency:,} at a time = {used}; {rounds:,} round(s)")
        if rounds < _FEW_ROUNDS and self.samples >= _FEW_ROUNDS:
            lines.append(
                "  so few rounds teach a sampler little: the same trials with a lower tune.concurrency find more, later"
            )
        return "\n".join(lines)


def plan(run: config.Run, cluster: Cluster, samples: int = 1, info: DatasetInfo | None = None) -> Plan:
    """Place a run, or the trials of its search where there are several `samples`.

    `info` is of the prepared dataset; without it the model is that of what the dataset section announces. ValueError,
    with the arithmetic and a way out, where the cluster is too small.
    """
    if samples > 1 and run.resources.min_workers:
        raise ValueError("resources.min_workers: a trial of a search has always as many workers; leave it out")
    cluster.at(run.resources.data, "resources.data")
    cluster = cluster.at(run.resources.train, "resources.train")
    resources, concurrency, gpus = run.resources, 1, cluster.gpus
    if samples > 1 and run.tune and run.tune.concurrency:
        concurrency = min(run.tune.concurrency, samples)
        if resources.cpus_per_worker is None:
            share = _down(min(1.0, cluster.cpus / (concurrency * resources.num_workers)))
            resources = resources.model_copy(update={"cpus_per_worker": share})
        if resources.use_gpu == "auto":
            gpus = cluster.gpus / concurrency
    scaling = plan_workers(resources, cluster.cpus, gpus)
    workers, use_gpu = resources.num_workers, scaling["use_gpu"]
    least = resources.min_workers or workers
    cpus = scaling["resources_per_worker"]["CPU"]
    num_parameters = _most_parameters(run, info)
    memory_gb = None if num_parameters is None else _memory_gb(run, num_parameters, info)
    slots = cluster.slots(cpus, 1.0 if use_gpu else 0.0, memory_gb or 0.0, resources.train.custom)
    if slots < least * concurrency:
        raise ValueError(_why_not(run, cluster, least * concurrency, cpus, use_gpu, memory_gb, slots))
    _check_object_store(run, cluster)
    if samples > 1 and not (run.tune and run.tune.concurrency):
        concurrency = min(slots // workers, samples)
    return Plan(run.resources, workers, use_gpu, cpus, num_parameters, memory_gb, concurrency, samples, cluster)


def plan_workers(resources: config.Resources, cpus: float, gpus: float) -> dict[str, Any]:
    """What one worker takes, as Ray's ScalingConfig has it; ValueError with the arithmetic where that is too much."""
    workers = resources.num_workers
    least, key = (resources.min_workers, "min_workers") if resources.min_workers else (workers, "num_workers")
    use_gpu = gpus >= least if resources.use_gpu == "auto" else resources.use_gpu
    if use_gpu and gpus < least:
        raise ValueError(
            f"resources.{key}={least} needs {least} GPUs, one a worker; the cluster has {gpus:g}. "
            f"Set resources.{key}={int(gpus) or 1} or resources.use_gpu=false"
        )
    if gpus and not use_gpu and resources.use_gpu == "auto":
        say(f"training on CPUs: resources.{key}={least} is more than the cluster's {gpus:g} GPUs")
    # Ray Data tasks that feed the workers need a CPU of their own, or nothing ever moves.
    elsewhere = resources.data.labels or resources.data.custom
    kept = resources.data.cpus if resources.feed == "ray_data" and not elsewhere else 0.0
    if cpus <= kept:
        raise ValueError(
            f"resources.feed: ray_data needs a CPU beside the workers; the cluster has {cpus:g}: feed=thread"
        )
    share = resources.cpus_per_worker or min(1.0, (cpus - kept) / workers)
    if share * least + kept > cpus + 1e-9:
        raise ValueError(
            f"resources.cpus_per_worker={share:g} x {key}={least} + {kept:g} for the feed = "
            f"{share * least + kept:g} CPUs; the cluster has {cpus:g}. "
            f"Set resources.cpus_per_worker={_down((cpus - kept) / least):g} or less"
        )
    return {"use_gpu": use_gpu, "resources_per_worker": {"CPU": _down(share)} | ({"GPU": 1} if use_gpu else {})}


def plan_for(run: config.Run, nodes: Path | None = None, verbose: bool = False) -> Plan:
    """Place a run on the machines of a file, or of the cluster that is there; nothing else is started."""
    samples = 1
    if run.tune:
        from mmray.on_ray.samplers import num_samples

        samples = num_samples(run, tuning.space_of(run))
    if nodes is not None:
        return plan(run, read_cluster(nodes), samples)
    if not os.environ.get("MMRAY_CLUSTER"):  # else a file describes that of Ray too
        runtime.start(verbose)
    return plan(run, cluster_of_ray(), samples)


def _down(cpus: float) -> float:
    """Rounded down to what Ray can count, so that equal shares never add up to more than the whole."""
    return math.floor(cpus * 1000) / 1000


def _why_not(
    run: config.Run, cluster: Cluster, wanted: int, cpus: float, use_gpu: bool, memory_gb: float | None, slots: int
) -> str:
    largest = max((node.memory_gb or math.inf for node in cluster.nodes), default=math.inf)
    if memory_gb and memory_gb > largest:
        return (
            f"one worker needs {memory_gb:.1f} GB of memory or more, for weights, gradients, optimiser and rows; the "
            f"largest machine has {largest:.1f} GB. Choose a smaller model or train.shuffle_mb={run.train.shuffle_mb:g}"
        )
    need = f"{cpus:g} CPUs" + (", 1 GPU" if use_gpu else "") + (f", {memory_gb:.1f} GB" if memory_gb else "")
    need += "".join(f", {amount:g} {name}" for name, amount in run.resources.train.custom.items())
    several = run.tune is not None and run.tune.concurrency is not None
    way_out = f"tune.concurrency={max(1, slots // run.resources.num_workers)} and " if several else ""
    return (
        f"{wanted} processes of ({need}) are asked for, and {slots} fit on the machines of the cluster "
        f"({cluster.said()}). Set {way_out}resources.num_workers={max(1, min(slots, run.resources.num_workers))}, or a "
        f"smaller resources.cpus_per_worker"
    )


def _check_object_store(run: config.Run, cluster: Cluster) -> None:
    """Ray Data tasks hand on whole windows of shuffled rows, one being read while one is used."""
    need_gb = 2 * run.train.shuffle_mb / 1024 if run.resources.feed == "ray_data" else 0.0
    has_gb = sum((node.object_store_gb or math.inf) * node.count for node in cluster.nodes)
    if need_gb > has_gb:
        raise ValueError(
            f"resources.feed: ray_data holds 2 x train.shuffle_mb={run.train.shuffle_mb:g} = {need_gb:.1f} GB in Ray's "
            f"object store, which has {has_gb:.1f} GB. Set train.shuffle_mb={math.floor(has_gb * 1024 / 2)} or less"
        )


def _memory_gb(run: config.Run, num_parameters: int, info: DatasetInfo | None) -> float:
    """Of one worker: see the module's documentation."""
    states = {"adam": 2, "adamw": 2, "sgd": int(run.train.optimizer.momentum > 0), "rmsprop": 2}
    copies = 2 + states[run.train.optimizer.name] + (run.train.ema_decay is not None)
    rows_mb, workers = run.train.shuffle_mb, run.resources.min_workers or run.resources.num_workers
    if info is not None:
        rows_mb = min(rows_mb, info.split("train").num_bytes / 2**20)
    return _PROCESS_GB + copies * 4 * num_parameters / 2**30 + 2 * rows_mb / workers / 1024


def _most_parameters(run: config.Run, info: DatasetInfo | None) -> int | None:
    """Of the run's model, or the largest that its search may try; None where that can't be known yet."""
    sizes = [_num_parameters(variant, info) for variant in _variants(run)]
    return max((size for size in sizes if size is not None), default=None)


def _variants(run: config.Run) -> Iterator[config.Run]:
    if run.tune is None:
        yield run
        return
    space = tuning.space_of(run)

    def options(param: tuning.Param) -> Sequence[tuning.Plain]:
        inner = isinstance(param.range, tuning.Choice) and param.range.when
        return param.range.ends() if inner or param.key.startswith("model.") else param.range.ends()[:1]

    for place, values in enumerate(tuning.combinations(space, options)):
        if place == _MAX_VARIANTS:
            return
        yield tuning.run_of(run, space, values)


def _num_parameters(run: config.Run, info: DatasetInfo | None) -> int | None:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build(run, info or _announced(run)).build_model().parameters())
    except (ValueError, OSError, KeyError):  # what is wrong with it, a run says when it begins
        return None


def _announced(run: config.Run) -> DatasetInfo:
    """The dataset that the run's section announces, without a look at the corpus."""
    dataset: Any = lookup.load("dataset", run.dataset.name)  # type: ignore[attr-defined]
    section: Any = run.dataset
    if getattr(section, "class_names_file", None):  # stands beside the corpus; the names don't matter
        section = section.model_copy(update={"class_names_file": None})
    return DatasetInfo(
        id="announced", columns=dataset.columns(section), class_names=dataset.class_names(section), splits={},
        split_rule="", group_key=dataset.GROUP_KEY, rows_in=0, rows_out=0, rejected=0, rejected_reasons={},
    )  # fmt: skip
