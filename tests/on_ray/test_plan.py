"""What fits on a cluster: worked out by hand, and by putting processes on machines one by one. Ray is not started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray import config
from mmray.on_ray.machines import Cluster, Node, read_cluster
from mmray.on_ray.plan import plan, plan_for

LR = {"train.optimizer.lr": {"loguniform": ["1e-4", "1e-1"]}}


def run_with(**sections: Any) -> config.Run:
    values = {
        "name": "planned",
        "task": "video_classification",
        "dataset": {"name": "youtube8m", "path": "data", "num_classes": 4716, "level": "video"},
        "model": {"name": "moe", "num_experts": 8},
    }
    return config.from_dict(values | sections)


def cluster(*nodes: dict[str, Any]) -> Cluster:
    return Cluster.model_validate({"nodes": nodes})


def test_memory_is_weights_gradients_optimiser_and_rows() -> None:
    found = plan(run_with(train={"shuffle_mb": 512}), cluster({"cpus": 4, "memory_gb": 16}))
    parameters = 4716 * (1152 * 17 + 8)
    assert found.num_parameters == parameters
    assert found.memory_gb == pytest.approx(0.7 + 4 * 4 * parameters / 2**30 + 1)
    sgd = plan(run_with(train={"optimizer": {"name": "sgd"}}), cluster({"cpus": 4, "memory_gb": 16}))
    assert sgd.memory_gb == pytest.approx(0.7 + 2 * 4 * parameters / 2**30 + 0.5)


def test_run_that_fits_says_how() -> None:
    said = plan(run_with(resources={"num_workers": 2}), cluster({"cpus": 4, "memory_gb": 16})).said()
    assert said.splitlines()[0] == "cluster: 1 x 4 CPUs, 0 GPUs, 16.0 GB"
    assert "workers: 2 x (1 CPU, 2.3 GB or more), 92,395,872 parameters" in said


def test_search_on_a_hundred_machines() -> None:
    tune = {"space": LR, "samples": 1000}
    machines = cluster({"count": 100, "cpus": 64, "gpus": 8, "memory_gb": 512})
    run = run_with(tune=tune, resources={"num_workers": 4, "use_gpu": True})
    found = plan(run, machines, 1000)
    assert (found.concurrency, found.num_workers, found.use_gpu) == (200, 4, True)
    assert "search: 1,000 trials, 200 at a time = 800 of 6400 CPUs, 800 of 800 GPUs; 5 round(s)" in found.said()


def test_largest_model_of_the_space_counts() -> None:
    space = {"model": {"choice": ["logistic", "moe"], "when": {"moe": {"model.num_experts": {"int": [1, 16]}}}}}
    found = plan(run_with(tune={"space": space}), cluster({"cpus": 64, "memory_gb": 12}), 20)
    assert found.num_parameters == 4716 * (1152 * 33 + 16)
    assert found.memory_gb is not None
    assert found.concurrency == int(12 / found.memory_gb) == 3


HUNDRED = """
nodes:
  - {cpus: 8, memory_gb: 32}                                                # the head
  - {count: 59, cpus: 32, memory_gb: 128, labels: {pool: cpu}, custom: {nvme: 2}}
  - {count: 40, cpus: 48, gpus: 4, memory_gb: 384, object_store_gb: 100, labels: {pool: gpu, zone: a}}
"""


def test_hundred_machines_of_several_kinds(tmp_path: Path) -> None:
    """Trains where the GPUs are, reads where the disks are; worked out by hand: 40 x 4 GPUs, of 4 a trial."""
    path = tmp_path / "nodes.yaml"
    path.write_text(HUNDRED)
    resources: dict[str, Any] = {
        "num_workers": 4,
        "train": {"labels": {"pool": "gpu"}},
        "data": {"labels": {"pool": "!gpu"}, "custom": {"nvme": 1}, "cpus": 4},
    }
    said = plan_for(run_with(resources=resources), path).said().splitlines()
    assert said[0] == "cluster: 40 x 48 CPUs, 4 GPUs, 384.0 GB"
    assert said[1].startswith("workers: 4 x (1 CPU, 1 GPU, ")
    found = plan_for(run_with(resources=resources, tune={"space": LR, "samples": 400}), path)
    assert (found.concurrency, found.use_gpu) == (40, True)
    assert "400 trials, 40 at a time = 160 of 1920 CPUs, 160 of 160 GPUs; 10 round(s)" in found.said()
    all_of_it = plan_for(run_with(resources=resources | {"num_workers": 160, "feed": "ray_data"}), path)
    assert all_of_it.scaling == {
        "num_workers": 160,
        "elastic_resize_monitor_interval_s": 60,
        "use_gpu": True,
        "resources_per_worker": {"CPU": 1.0, "GPU": 1.0},
        "label_selector": {"pool": "gpu"},
    }
    with pytest.raises(ValueError, match=r"num_workers=161 needs 161 GPUs, one a worker; the cluster has 160"):
        plan_for(run_with(resources=resources | {"num_workers": 161, "use_gpu": True}), path)
    with pytest.raises(
        ValueError, match=r"resources\.data: no machine has \{'labels': \{'pool': 'disk'\}\}; .*nvme: 2"
    ):
        plan_for(run_with(resources=resources | {"data": {"labels": {"pool": "disk"}}}), path)
    few = {"train": {"custom": {"nvme": 1.5}}, "num_workers": 60, "use_gpu": False, "cpus_per_worker": 1}
    with pytest.raises(ValueError, match=r"60 processes of \(1 CPUs, .*1\.5 nvme\) are asked for, and 59 fit"):
        plan_for(run_with(resources=few), path)


def test_elastic_run_needs_no_more_than_its_fewest_workers() -> None:
    elastic = {"num_workers": 8, "min_workers": 3, "cpus_per_worker": 1}
    found = plan(run_with(resources=elastic), cluster({"count": 3, "cpus": 1, "memory_gb": 16}))
    assert found.scaling["num_workers"] == (3, 8)
    assert found.scaling["use_gpu"] is False
    assert "workers: 3 to 8 x (1 CPU, " in found.said()
    with pytest.raises(ValueError, match=r"cpus_per_worker=1 x min_workers=3 \+ 0 for the feed = 3 CPUs.*has 2"):
        plan(run_with(resources=elastic), cluster({"count": 2, "cpus": 1}))
    on_gpus = plan(run_with(resources=elastic), cluster({"cpus": 16, "gpus": 4}))
    assert on_gpus.worker_resources == {"CPU": 1, "GPU": 1}
    with pytest.raises(ValueError, match=r"resources\.min_workers: a trial of a search"):
        plan(run_with(resources=elastic, tune={"space": LR}), cluster({"cpus": 16}), 20)
    with pytest.raises(ValueError, match=r"min_workers=9 is more than num_workers=8"):
        run_with(resources=elastic | {"min_workers": 9})


@pytest.mark.parametrize(
    ("sections", "machines", "samples", "words"),
    [
        ({"resources": {"num_workers": 3}}, [{"count": 4, "cpus": 0.9}], 1, ["3 processes of (1 CPUs", "0 fit"]),
        (
            {"resources": {"num_workers": 4, "use_gpu": True}},
            [{"count": 4, "cpus": 0.5, "gpus": 1}, {"cpus": 64}],
            1,
            ["4 processes of (1 CPUs, 1 GPU", "0 fit"],
        ),
        ({}, [{"cpus": 8, "memory_gb": 1}], 1, ["one worker needs 2.6 GB", "the largest machine has 1.0 GB"]),
        (
            {"tune": {"space": LR, "concurrency": 8}, "resources": {"cpus_per_worker": 1}},
            [{"cpus": 16, "memory_gb": 8}],
            20,
            ["8 processes", "3 fit", "tune.concurrency=3"],
        ),
        (
            {"resources": {"feed": "ray_data"}, "train": {"shuffle_mb": 4096}},
            [{"cpus": 8, "memory_gb": 64, "object_store_gb": 4}],
            1,
            ["2 x train.shuffle_mb=4096 = 8.0 GB", "has 4.0 GB", "train.shuffle_mb=2048"],
        ),
    ],
)
def test_what_can_not_be_is_refused_with_the_arithmetic(
    sections: dict[str, Any], machines: list[dict[str, Any]], samples: int, words: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"Set|Choose") as caught:
        plan(run_with(**sections), cluster(*machines), samples)
    for word in words:
        assert word in str(caught.value)


nodes = st.builds(
    Node,
    cpus=st.integers(1, 8),
    gpus=st.integers(0, 4),
    memory_gb=st.none() | st.integers(1, 64),
    count=st.integers(1, 3),
)


@given(st.lists(nodes, min_size=1, max_size=4), st.sampled_from([0.5, 1.0, 2.0]), st.integers(0, 1), st.integers(1, 9))
def test_slots_are_what_fits_one_by_one(machines: list[Node], cpus: float, gpus: int, memory_gb: int) -> None:
    placed = 0
    for node in machines:
        for _ in range(node.count):
            left = [node.cpus, node.gpus, node.memory_gb if node.memory_gb is not None else 10**6]
            while all(has >= needs for has, needs in zip(left, (cpus, gpus, memory_gb), strict=True)):
                left = [has - needs for has, needs in zip(left, (cpus, gpus, memory_gb), strict=True)]
                placed += 1
    assert Cluster(nodes=machines).slots(cpus, gpus, memory_gb) == placed


def test_cluster_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text("- {count: 2, cpus: 8, gpus: 1}\n- {cpus: 4}\n")
    assert read_cluster(path).cpus == 20
    run = run_with(tune={"space": LR, "samples": 30})
    assert plan_for(run, path).concurrency == 2  # on the GPUs
    path.write_text("nodes: [{cpu: 8}]\n")
    with pytest.raises(ValueError, match=r"nodes\.yaml: .*\n.*nodes\.0\.cpu") as caught:
        read_cluster(path)
    assert "did you mean 'cpus'?" in str(caught.value)
    with pytest.raises(ValueError, match=r"none\.yaml: cannot be read"):
        read_cluster(tmp_path / "none.yaml")


def test_described_cluster_needs_neither_ray_nor_optuna(tmp_path: Path) -> None:
    """Of a run without a search; by MMRAY_CLUSTER as by --cluster."""
    (tmp_path / "run.yaml").write_text(run_with().to_yaml())
    (tmp_path / "nodes.yaml").write_text("- {cpus: 3, memory_gb: 64}\n")
    code = f"""
import sys
sys.modules.update({{"ray": None, "optuna": None, "sqlalchemy": None}})
sys.argv = ["mmray", "plan", {str(tmp_path / "run.yaml")!r}]
from mmray.cli import main
main()
"""
    environment = os.environ | {"MMRAY_CLUSTER": str(tmp_path / "nodes.yaml")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stdout.startswith("cluster: 1 x 3 CPUs, 0 GPUs, 64.0 GB\nworkers: 1 x "), ended.stderr


def test_plan_of_the_command_line(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from mmray.cli import cli

    (tmp_path / "run.yaml").write_text(run_with(tune={"space": LR}).to_yaml())
    (tmp_path / "nodes.yaml").write_text("- {cpus: 3, memory_gb: 64}\n")
    arguments = ["plan", str(tmp_path / "run.yaml"), "--cluster", str(tmp_path / "nodes.yaml")]
    ended = CliRunner().invoke(cli, arguments)
    assert ended.exit_code == 0
    assert "search: 20 trials, 3 at a time = 3 of 3 CPUs; 7 round(s)" in ended.output
