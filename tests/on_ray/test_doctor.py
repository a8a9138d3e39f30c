"""What the doctor makes of what it finds: of facts made up, of this machine, and of a real cluster."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from mmray.on_ray import doctor, facts
from mmray.on_ray.doctor import Finding, examine, of_machine, of_nodes, said
from mmray.on_ray.facts import Machine, Probe, Torch

if TYPE_CHECKING:
    from heads import Head

pytest_plugins = ["heads"]

GB = 2**30
WELL = Machine(
    name="a",
    python="3.11.9",
    torch=Torch("2.11.0+cu130", "13.0", 2, ""),
    unlike_pins=[],
    driver="580.65.06",
    gpus=2,
    memory=64 * GB,
    shm=30 * GB,
    disk_total=200 * GB,
    disk_free=120 * GB,
    open_files=1 << 20,
    compiles_anew=False,
    ray={"CPU": 8.0, "GPU": 2.0, "object_store_memory": 19.0 * GB, "node": 1.0},
    ahead_s=0.004,
    ahead_within_s=0.002,
)


def bad(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.level for finding in findings if finding.level != "ok"}


def test_a_machine_that_is_well_is_said_to_be() -> None:
    findings = list(of_machine(WELL, "here"))
    assert bad(findings) == {}
    assert [finding.topic for finding in findings] == ["versions", "GPUs", "memory", "disk", "open files", "bytecode"]
    assert not [finding for finding in findings if finding.remedy]


@pytest.mark.parametrize(
    ("wrong", "topic", "level", "remedy"),
    [
        ({"torch": None}, "versions", "fail", "requirements.txt"),
        ({"unlike_pins": ["torch is 2.9.0, pinned is 2.11.0"]}, "versions", "warn", "--packages install"),
        (
            {"torch": Torch("2.11.0+cu130", "13.0", 0, "driver too old"), "driver": "550.54"},
            "GPUs",
            "fail",
            "580 or newer",
        ),
        ({"torch": Torch("2.11.0+cpu", None, 0, "")}, "GPUs", "fail", "built for CUDA"),
        ({"torch": Torch("2.11.0+cu130", "13.0", 0, "no device")}, "GPUs", "fail", "--gpus all"),
        ({"shm": 64 << 20, "ray": {}}, "memory", "warn", "--shm-size=21g"),
        ({"disk_free": 24 * GB}, "disk", "warn", "free the disk"),
        ({"disk_free": 9 * GB}, "disk", "fail", "free the disk"),
        ({"open_files": 1024}, "open files", "warn", "ulimit -n 65536"),
        ({"compiles_anew": True}, "bytecode", "warn", "compileall"),
    ],
)
def test_what_is_wrong_has_a_remedy(wrong: dict[str, object], topic: str, level: str, remedy: str) -> None:
    findings = list(of_machine(replace(WELL, **wrong), "here"))  # type: ignore[arg-type]
    assert bad(findings) == {topic: level}
    (finding,) = [finding for finding in findings if finding.level != "ok"]
    assert remedy in finding.remedy


def test_a_machine_without_gpus_is_well() -> None:
    cpu = replace(WELL, torch=Torch("2.11.0+cpu", None, 0, ""), driver=None, gpus=0, ray={})
    assert bad(list(of_machine(cpu, "here"))) == {}


def test_nodes_are_compared() -> None:
    other = replace(
        WELL, name="b", python="3.12.4", ahead_s=-5.0, ahead_within_s=0.5, ray=WELL.ray | {"GPU": 1.0},
        probe=Probe("s3://bucket", 80.0, 2.0),
    )  # fmt: skip
    far = replace(WELL, name="c", ahead_s=90.0, probe=Probe("s3://bucket", error="PermissionError: no"))
    findings = list(of_nodes([WELL, other, far]))
    assert findings[0].text == "3, with 24 CPUs, 5 GPUs and an object store of 57.0 GB"
    assert [(f.where, f.topic, f.level) for f in findings if f.level != "ok"] == [
        ("cluster", "versions", "fail"),
        ("node 1 b", "GPUs of Ray", "warn"),
        ("node 1 b", "clock", "warn"),
        ("node 1 b", "storage", "warn"),
        ("node 2 c", "clock", "fail"),
        ("node 2 c", "storage", "fail"),
    ]


def test_a_clock_is_not_blamed_for_a_slow_answer() -> None:
    late = replace(WELL, ahead_s=3.0, ahead_within_s=2.5)
    assert bad(list(of_nodes([late]))) == {}


def test_the_report_for_people_and_for_programs() -> None:
    findings = [Finding("here", "disk", "fail", "1 GB free", "free it"), Finding("node 0", "clock", "ok", "+0.0 s")]
    assert said(findings).splitlines() == [
        "here:",
        "  fail  disk         1 GB free",
        "                     -> free it",
        "node 0:",
        "  ok    clock        +0.0 s",
    ]
    assert json.loads(said(findings, as_json=True))[0] == {
        "where": "here", "topic": "disk", "level": "fail", "text": "1 GB free", "remedy": "free it"
    }  # fmt: skip


def test_this_machine_and_a_folder_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    findings = examine(None, str(tmp_path / "below"))
    by_topic = {finding.topic: finding for finding in findings}
    assert f"PyTorch {torch.__version__}" in by_topic["versions"].text
    assert by_topic["versions"].level == "ok"
    assert by_topic["storage"].level == "ok"
    assert re.search(r"writes [\d,]+ MB/s, reads [\d,]+ MB/s", by_topic["storage"].text)
    assert list((tmp_path / "below").iterdir()) == []  # what was written is gone


def test_a_storage_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = doctor._probed(replace(WELL, probe=facts.probe(str(tmp_path / "file" / "below"))), "here")
    assert (finding.level, finding.topic) == ("fail", "storage")
    assert "NotADirectoryError" in finding.text


def test_bytecode_is_looked_for_where_ray_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr("importlib.util.cache_from_source", lambda path: str(tmp_path / "none" / "ray.pyc"))
    assert facts._compiles_anew()
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert not facts._compiles_anew()


def test_a_cluster_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "of_machine", lambda pins, storage: WELL)
    (*_, finding) = examine("http://127.0.0.1:9", "s3://bucket")
    assert (finding.topic, finding.level) == ("reachable", "fail")
    assert finding.text == "no cluster answers at http://127.0.0.1:9"
    assert "is it up" in finding.remedy


@pytest.mark.ray
def test_every_node_of_a_cluster_is_looked_at_from_within(
    as_its_user: Head, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(facts, "of_machine", lambda pins, storage: WELL)
    findings = examine(as_its_user.url, str(tmp_path))
    assert not [finding for finding in findings if finding.topic == "jobs"], findings
    nodes = next(finding for finding in findings if finding.topic == "nodes")
    assert re.match(r"1, with 2 CPUs, 0 GPUs and an object store of [\d.]+ GB", nodes.text)
    of_head = {f.topic: f for f in findings if f.where.startswith("node 0 ")}
    assert {"versions", "GPUs", "memory", "disk", "open files", "bytecode", "clock", "storage"} <= set(of_head)
    assert of_head["versions"].level == "ok"
    assert of_head["storage"].level == "ok"
    assert of_head["clock"].level == "ok"  # its own
    assert list(tmp_path.iterdir()) == []
