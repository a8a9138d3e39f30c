"""A cluster that grows when work comes and shrinks after it, by Ray's own autoscaler over its fake provider of nodes.

The cluster file is written by hand: Ray's helper for such clusters stops every Ray on the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import heads
import pytest
from nodes import Nodes, run_of, wait_for

from mmray.on_ray.machines import autoscaled
from mmray.training.run_folder import read_log

pytest_plugins = ["nodes"]
IDLE_S = 20


def cluster_file(gcs_address: str = "") -> dict[str, Any]:
    """Up to two workers of a CPU each to train, and one for data, none of which is there at first."""
    worker = {"node_config": {}, "min_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": gcs_address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {"ssh_user": "nobody"},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "trains": worker | {"resources": {"CPU": 1, "trains": 1}, "max_workers": 2},
            "data": worker | {"resources": {"CPU": 1, "disk": 1}, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def test_machines_that_may_come_are_planned_with() -> None:
    nodes = autoscaled(cluster_file())
    assert [(node.cpus, node.count, node.custom) for node in nodes] == [(1, 2, {"trains": 1}), (1, 1, {"disk": 1})]
    assert [node.labels["ray.io/node-group"] for node in nodes] == ["trains", "data"]
    assert max(node.count for node in autoscaled(cluster_file() | {"max_workers": 1})) == 1


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_come_for_a_run_and_go_after_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is not refused though no machine is there yet: `ray up` has left on the head which may come."""
    command_of_head = heads.head_command

    def with_autoscaler(*arguments: Any) -> list[str]:
        command = command_of_head(*arguments)
        (port,) = (part.removeprefix("--port=") for part in command if part.startswith("--port="))
        path = tmp_path / "ray_bootstrap_config.yaml"
        path.write_text(json.dumps(cluster_file(f"127.0.0.1:{port}")))  # JSON is YAML
        return [*command, f"--autoscaling-config={path}"]

    monkeypatch.setattr(heads, "head_command", with_autoscaler)
    with heads.started(None, 0, RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1") as head:
        head.environment["HOME"] = str(tmp_path)
        nodes = Nodes(head)
        assert not nodes.alive()
        run = run_of(
            root,
            "grown",
            prepare={"out": str(tmp_path / "prepared")},
            resources={"train": {"custom": {"trains": 1}}, "data": {"custom": {"disk": 0.5}}},
        )
        nodes.do("train", run)
        assert len([line for line in read_log(run.run_dir) if line["event"] == "epoch"]) == 3
        kinds = {node["node_id"]: node["resources_total"] for node in nodes.listed("nodes")}
        of_workers = [actor["node_id"] for actor in nodes.listed("actors") if actor["class_name"] == "RayTrainWorker"]
        assert len(set(of_workers)) == 2
        assert all("trains" in kinds[node] for node in of_workers)
        assert all("disk" in kinds[task["node_id"]] for task in nodes.listed("tasks") if task["name"] == "Map(write)")
        wait_for(lambda: not nodes.alive(), f"nodes that are idle for {IDLE_S} s to go")
