"""The cluster files: valid by Ray's own schema, in step with the pins, closed to strangers, and without secrets.

KubeRay's custom resource definitions are in no Python package: its fields are checked by name here, against those of
its API reference for ray.io/v1, and by MMRAY_KUBERAY_CRDS, a folder of the definitions' YAML, where that is set.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmray import __version__
from mmray.on_ray.machines import read_cluster

PROJECT = Path(__file__).parent.parent.parent
LAUNCHER = ["cluster.yaml", "cluster.gcp.yaml"]
KUBERNETES = ["kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml"]
ALL = [*LAUNCHER, *KUBERNETES, "kubernetes/Dockerfile"]


def load(name: str) -> dict[str, Any]:
    values = yaml.safe_load((PROJECT / name).read_text())
    assert isinstance(values, dict)
    return values


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)", (PROJECT / "requirements.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def texts(values: Any) -> Iterator[str]:
    """All keys and values, without the comments."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(values, list):
        for value in values:
            yield from texts(value)
    else:
        yield str(values)


# All of them


@pytest.mark.parametrize("name", ALL)
def test_versions_are_the_pinned_ones(name: str) -> None:
    text = (PROJECT / name).read_text()
    images = re.findall(r"rayproject/ray:(\S+)", text)
    assert all(re.fullmatch(rf"{re.escape(pinned('ray'))}-py311-[cg]pu", image) for image in images)
    own = re.findall(r"mmray:(\d\S+)", text)
    assert set(own) <= {__version__}
    assert images or own
    for version in re.findall(r"[rR]ayVersion: \"(\S+)\"", text):
        assert version == pinned("ray")
    if name != "kubernetes/Dockerfile" and name not in KUBERNETES:
        assert "--require-hashes -r /home/ray/mmray/requirements.txt" in text


@pytest.mark.parametrize("name", ALL)
def test_there_is_no_secret_and_nothing_is_open_to_all(name: str) -> None:
    text = (PROJECT / name).read_text()
    for wrong in (
        r"0\.0\.0\.0", r"::/0", r"AKIA[0-9A-Z]{12}", r"(?i)(secret_access_key|auth_token|password)\s*[:=]\s*\S",
        r"-----BEGIN", r"(?i)privileged: true", r"hostNetwork: true", r"LoadBalancer", r"NodePort",
    ):  # fmt: skip
        assert not re.search(wrong, text), wrong


# Those of `ray up`


@pytest.mark.parametrize("name", LAUNCHER)
def test_it_is_valid_by_rays_own_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(name)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    broken = copy.deepcopy(prepared) | {"idle_timeout_minute": 1}
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(broken)
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "docker", "provider", "auth"):
        assert prepared[key] == config[key] or key == "auth", key  # nothing of Ray's defaults slipped in


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_head_does_no_work_and_workers_come_and_go(name: str) -> None:
    config = load(name)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert {kind["labels"]["stage"] for kind in types.values()} == {"data", "train"}
    for kind in types.values():
        assert kind["min_workers"] == 0
        assert ("GPU" in kind["resources"]) == (kind["labels"]["stage"] == "train")
        assert kind["docker"].get("worker_image", "cpu").endswith("gpu" if "GPU" in kind["resources"] else "cpu")
        assert re.match(r"--shm-size=\d+g$", kind["docker"]["worker_run_options"][0])
    assert sum(kind["max_workers"] for kind in types.values()) <= config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 30


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_token_is_asked_for_and_the_dashboard_is_on_loopback(name: str) -> None:
    config = load(name)
    assert "-e RAY_AUTH_MODE=token" in " ".join(config["docker"]["run_options"])
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert any("umask 077" in command and "~/.ray/auth_token" in command for command in config["setup_commands"])
    for path in config["file_mounts"].values():  # what is copied to the machines: the package and the pins
        assert path in ("./mmray", "./requirements.txt")
    assert config["cluster_synced_files"] == []


def test_on_aws_machines_have_roles_and_closed_doors() -> None:
    config = load("cluster.yaml")
    assert config["provider"]["security_group"] == {"GroupName": "mmray"}  # Ray's default rules, without further ports
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        assert node["IamInstanceProfile"] == {"Name": "mmray-head" if name == "head" else "mmray-worker"}
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert ("InstanceMarketOptions" in node) == (name != "head")
        for key in ("KeyName", "SecurityGroupIds", "UserData"):
            assert key not in node
    assert pinned("boto3")  # Ray's provider needs it on the head, and the command that gets the token everywhere


def test_shell_commands_are_whole() -> None:
    """Each is one that bash can read; where the token is fetched by Python, so is that."""
    import ast
    import subprocess

    for name in LAUNCHER:
        config = load(name)
        for key in ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
            for command in config[key]:
                subprocess.run(["bash", "-n", "-c", command], check=True)
                for program in re.findall(r"python -c \"(.*?)\"", command, re.DOTALL) + re.findall(
                    r"<<'END'\n(.*?)\nEND", command, re.DOTALL
                ):
                    ast.parse(program)


@pytest.mark.parametrize(("name", "seconds"), [("cluster.yaml", 120), ("cluster.gcp.yaml", 30)])
def test_a_spot_notice_drains_the_node_in_time(name: str, seconds: int, tmp_path: Path) -> None:
    """The watcher itself, with programs in the place of wget and ray: the cloud answers at the third question."""
    import subprocess

    (command,) = [command for command in load(name)["worker_start_ray_commands"] if "drain-node" in command]
    program = re.search(r"bash -c '(.*)'", command, re.DOTALL)
    assert program
    asked = tmp_path / "asked"
    answer = "echo TRUE" if "preempted" in program[1] else 'echo \'{"action": "terminate"}\''
    for tool, text in {
        "sleep": "exit 0",
        "wget": f'case "$*" in *api/token*) exit;; esac; echo . >> {asked}; test $(wc -l < {asked}) = 3 && {answer}',
        "ray": f'echo "$@" > {tmp_path}/told',
    }.items():
        (tmp_path / tool).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / tool).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", program[1]], check=True, env={"PATH": path}, timeout=60, capture_output=True)
    told = (tmp_path / "told").read_text().split()
    assert told[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert seconds - 15 < int(told[-1]) < seconds
    assert len(asked.read_text().splitlines()) == 3


def test_a_spot_machine_that_aws_has_not_comes_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's provider over an EC2 that refuses what it has not."""
    pytest.importorskip("boto3")
    from botocore.exceptions import ClientError
    from ray.autoscaler.node_launch_exception import NodeLaunchException
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND

    from mmray.on_ray.spot import SpotFirst

    class Instance:
        state_reason: Any = None
        state = {"Name": "pending"}  # noqa: RUF012

        def __init__(self, name: str) -> None:
            self.id = self.instance_id = name

    class EC2:
        def __init__(self, spot: int, code: str = "InsufficientInstanceCapacity") -> None:
            self.spot, self.code, self.asked = spot, code, []

        def create_instances(self, **wanted: Any) -> list[Instance]:
            is_spot = "InstanceMarketOptions" in wanted
            self.asked.append((is_spot, wanted["MaxCount"]))
            count = min(wanted["MaxCount"], self.spot) if is_spot else wanted["MaxCount"]
            if count < wanted["MinCount"]:
                raise ClientError({"Error": {"Code": self.code, "Message": "none"}}, "RunInstances")
            return [Instance(f"{'spot' if is_spot else 'on-demand'}-{number}") for number in range(count)]

    node = {"InstanceType": "g6.12xlarge", "SubnetIds": ["a", "b"], "InstanceMarketOptions": {"MarketType": "spot"}}

    def create(ec2: EC2, node: dict[str, Any], count: int) -> list[str]:
        provider = SpotFirst({"region": "us-west-2", "cache_stopped_nodes": False}, "mmray")
        provider.ec2_fail_fast = ec2
        return sorted(provider.create_node(copy.deepcopy(node), {TAG_RAY_NODE_KIND: "worker"}, count))

    assert create(EC2(spot=9), node, 2) == ["spot-0", "spot-1"]
    none = EC2(spot=0)
    assert create(none, node, 2) == ["on-demand-0", "on-demand-1"]
    assert none.asked[-1] == (False, 2)
    assert all(asked == (True, 2) for asked in none.asked[:-1])
    assert create(EC2(spot=1), node, 3) == ["on-demand-0", "on-demand-1", "spot-0"]
    with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
        create(EC2(spot=0, code="UnauthorizedOperation"), node, 1)
    on_demand = {key: value for key, value in node.items() if key != "InstanceMarketOptions"}
    assert create(EC2(spot=0), on_demand, 1) == ["on-demand-0"]


def test_ray_up_finds_the_provider() -> None:
    pytest.importorskip("boto3")
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.providers import _get_node_provider_cls

    assert issubclass(_get_node_provider_cls(load("cluster.yaml")["provider"]), AWSNodeProvider)


# Those of KubeRay

FIELDS = {  # of ray.io/v1, from the API reference of KubeRay 1.6
    "RayJob": {
        "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata",
        "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId",
        "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
        "shutdownAfterJobFinishes", "suspend",
    },
    "RayCluster": {
        "suspend", "managedBy", "authOptions", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
        "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs",
    },
    "head": {"template", "headService", "enableIngress", "resources", "labels", "rayStartParams", "serviceType"},
    "worker": {
        "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "resources", "labels",
        "rayStartParams", "template", "scaleStrategy", "numOfHosts",
    },
    "autoscaler": {
        "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
        "env", "envFrom", "volumeMounts",
    },
}  # fmt: skip


def cluster_of(name: str) -> dict[str, Any]:
    spec = load(name)["spec"]
    found = spec.get("rayClusterSpec", spec)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", KUBERNETES)
def test_kuberay_knows_all_fields(name: str) -> None:
    values = load(name)
    assert set(values) == {"apiVersion", "kind", "metadata", "spec"}
    assert values["apiVersion"] == "ray.io/v1"
    cluster = cluster_of(name)
    assert set(values["spec"]) <= FIELDS[values["kind"]]
    assert set(cluster) <= FIELDS["RayCluster"]
    assert set(cluster["autoscalerOptions"]) <= FIELDS["autoscaler"]
    assert set(cluster["headGroupSpec"]) <= FIELDS["head"]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= FIELDS["worker"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("name", KUBERNETES)
def test_on_kubernetes_the_token_is_asked_for_and_pods_are_confined(name: str) -> None:
    cluster = cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == "mmray"
        assert pod["restartPolicy"] == "Never"
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        ((name, value),) = [(variable["name"], variable["value"]) for variable in container["env"]]
        assert (name, value) in (
            ("MMRAY_CLUSTER", "/home/ray/mmray/kubernetes/nodes.yaml"),
            ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "90"),
        )
        if name.startswith("RAY"):
            assert pod["terminationGracePeriodSeconds"] > int(value)
        (shm,) = pod["volumes"]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert container["volumeMounts"] == [{"name": shm["name"], "mountPath": "/dev/shm"}]
    gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for group in
            cluster["workerGroupSpecs"]]  # fmt: skip
    assert gpus == [None, "4"]


def test_what_runs_are_compared_with_is_what_may_come() -> None:
    groups = cluster_of("kubernetes/raycluster.yaml")["workerGroupSpecs"]
    there = []
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        node = {"count": group["maxReplicas"], "cpus": int(limits["cpu"]), "memory_gb": int(limits["memory"][:-2])}
        gpus = {"gpus": int(limits["nvidia.com/gpu"])} if "nvidia.com/gpu" in limits else {}
        there.append(node | gpus | {"labels": group["labels"]})
    assert load("kubernetes/nodes.yaml")["nodes"] == there
    assert sum(node.count for node in read_cluster(PROJECT / "kubernetes/nodes.yaml").nodes) == 12


def test_the_job_has_the_standing_clusters_machines() -> None:
    assert cluster_of("kubernetes/rayjob.yaml") == cluster_of("kubernetes/raycluster.yaml")


def test_the_job_runs_what_is_in_the_image() -> None:
    command = load("kubernetes/rayjob.yaml")["spec"]["entrypoint"].split()
    copied = re.findall(r"^COPY (\S+) (\S+)$", (PROJECT / "kubernetes/Dockerfile").read_text(), re.MULTILINE)
    for word in command[1:3]:
        there = [PROJECT / source / Path(word).relative_to(t) for source, t in copied if word.startswith(f"{t}/")]
        assert [path.is_file() for path in there] == [True]


@pytest.mark.parametrize("name", KUBERNETES)
def test_it_is_valid_by_kuberays_own_definitions(name: str) -> None:
    if "MMRAY_KUBERAY_CRDS" not in os.environ:
        pytest.skip("MMRAY_KUBERAY_CRDS is not set: a folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml")
    import jsonschema

    values = load(name)
    definition = Path(os.environ["MMRAY_KUBERAY_CRDS"]) / f"ray.io_{values['kind'].lower()}s.yaml"
    versions = yaml.safe_load(definition.read_text())["spec"]["versions"]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
    jsonschema.validate(values, schema)
