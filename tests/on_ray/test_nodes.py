"""Several nodes: what runs on which, and that it comes to the same. Each node is a `ray start` of its own.

Where tasks and actors ran is what Ray's dashboard tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nodes import Nodes, run_of, undisturbed, values_of

from mmray import study
from mmray.training.run_folder import read_log

pytest_plugins = ["nodes"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def pools(nodes: Nodes) -> Iterator[Nodes]:
    """Two nodes to train on and one for data, which also has a resource of its own."""
    nodes.add("gpu-1", labels="pool=train")
    nodes.add("gpu-2", labels="pool=train")
    nodes.add("data", labels="pool=data", custom={"disk": 1})
    yield nodes
    nodes.end(*nodes.of)


def ran_on(nodes: Nodes, kind: str, key: str, name: str) -> set[str]:
    """The nodes on which tasks or actors of a name ran."""
    return {nodes.name_of(one["node_id"]) for one in nodes.listed(kind) if one[key] == name and one["node_id"]}


def test_stages_run_where_they_belong_and_training_is_that_of_one_process(pools: Nodes, root: Path) -> None:
    """Preparation and the reading of rows on the data node, which has the disk; a worker on each of the others."""
    run = run_of(
        root,
        "placed",
        resources={
            "feed": "ray_data",
            "train": {"labels": {"pool": "train"}},
            "data": {"labels": {"pool": "!train"}, "custom": {"disk": 0.5}},
        },
    )
    said = pools.do("train", run)
    assert "prepared" in said
    assert ran_on(pools, "tasks", "name", "Map(write)") == {"data"}
    assert ran_on(pools, "tasks", "name", "MapBatches(read)") == {"data"}
    assert ran_on(pools, "actors", "class_name", "RayTrainWorker") == {"gpu-1", "gpu-2"}
    ours, reference = read_log(run.run_dir), undisturbed(run)
    np.testing.assert_allclose(values_of(ours), values_of(reference), rtol=1e-4)
    np.testing.assert_allclose(values_of(ours, "val/gap", "epoch"), values_of(reference, "val/gap", "epoch"), atol=1e-3)


def test_parts_of_a_preparation_spread_over_the_nodes(pools: Nodes, root: Path) -> None:
    run = run_of(root, "spread", prepare={"out": str(root / "spread"), "row_group_mb": 1})
    before = {task["task_id"] for task in pools.listed("tasks")}
    assert "1,201 rows in, 1,201 out" in pools.do("prepare", run)
    written = [t for t in pools.listed("tasks") if t["name"] == "Map(write)" and t["task_id"] not in before]
    assert len({task["node_id"] for task in written}) > 1


def test_place_that_no_machine_has_is_refused_before_anything_starts(pools: Nodes, root: Path) -> None:
    run = run_of(root, "nowhere", resources={"train": {"labels": {"pool": "tpu"}}})
    process = pools.begin("train", run)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "resources.train: no machine has {'labels': {'pool': 'tpu'}}; those of the cluster have" in output
    assert "pool: train" in output


def test_trials_of_a_search_spread_over_the_nodes(pools: Nodes, root: Path) -> None:
    """Four trials, two at a time, on the nodes to train on; each has the curve of the same run in one process."""
    space = {"train.optimizer.lr": {"choice": [0.003, 0.01, 0.03, 0.1]}}
    run = run_of(
        root,
        "search",
        train={"epochs": 2},
        resources={"num_workers": 1, "train": {"labels": {"pool": "train"}}},
        tune={"space": space, "sampler": "grid"},
    )
    pools.do("tune", run)
    info = study.read_info(run.run_dir)
    assert [trial.state for trial in info.trials] == ["complete"] * 4
    in_groups = [a for a in pools.listed("actors") if any("CPU_group" in key for key in a["required_resources"] or ())]
    trials = {pools.name_of(a["node_id"]) for a in in_groups if a["class_name"] != "RayTrainWorker" and a["node_id"]}
    assert trials == {"gpu-1", "gpu-2"}, {a["class_name"] for a in pools.listed("actors")}
    for trial in info.trials[:2]:
        lr = trial.values["train.optimizer.lr"]
        alone = undisturbed(run_of(root, f"lr-{lr}", train={"epochs": 2, "optimizer": {"lr": lr}}))
        assert [value for _, value in trial.curve] == pytest.approx(values_of(alone, "val/gap", "epoch"), rel=1e-4)
