"""What goes wrong on a cluster, one thing at a time; and that the run comes to the numbers of an undisturbed one.

`docs/operations.md` has a line for each. A worker that is killed: `test_pipeline.py`, and again and again in
`test_chaos.py`; a full disk: `tests/training/test_full_disk.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heads import started
from nodes import WAIT_S, Nodes, command_of, ended, run_of, undisturbed, values_of, wait_for

from mmray import config
from mmray.on_ray.up import processes_of
from mmray.training import checkpoint
from mmray.training.run_folder import read_log

pytest_plugins = ["nodes"]
pytestmark = [pytest.mark.ray, pytest.mark.chaos]

# Steps that are small and many: 420 an epoch, without a checkpoint on the way.
LONG: dict[str, Any] = {"epochs": 3, "batch_size": 2}


@pytest.fixture
def two(nodes: Nodes) -> Nodes:
    """Two nodes with a CPU each."""
    nodes.have("one", "two")
    return nodes


def steps(run: config.Run) -> int:
    """How many are in the log."""
    return len(values_of(read_log(run.run_dir)))


def last_step(run: config.Run) -> int:
    """Of the last checkpoint."""
    done = checkpoint.last(run.run_dir)
    return done.step if done else 0


def assert_undisturbed(run: config.Run, rtol: float = 2e-5) -> None:
    ours, reference = read_log(run.run_dir), undisturbed(run)
    assert [(line["event"], line["step"]) for line in ours] == [(line["event"], line["step"]) for line in reference]
    np.testing.assert_allclose(values_of(ours), values_of(reference), rtol=rtol, atol=1e-6)
    scores = [values_of(log, "val/gap", "epoch") for log in (ours, reference)]
    np.testing.assert_allclose(*scores, atol=1e-3)


def going_on_from(output: str, why: str) -> int:
    """The step at which, as the console said, the run went on."""
    (step,) = re.findall(rf"{why}; going on from step ([\d,]+)", output)
    return int(step.replace(",", ""))


def test_worker_that_gets_sigterm_stops_all_with_a_checkpoint(two: Nodes, root: Path) -> None:
    """In the first epoch, when no other checkpoint is there; each worker writes a line of the log but once."""
    run = run_of(root, "sigterm", train=LONG)
    process = two.begin("train", run)
    wait_for(lambda: steps(run) > 30, "the thirtieth step")
    (worker,) = two.of["two"].workers()
    os.kill(worker, signal.SIGTERM)
    assert 30 < going_on_from(ended(process), "a machine is about to go") < 420
    assert_undisturbed(run)


def test_driver_that_gets_sigterm_stops_with_a_checkpoint(two: Nodes, root: Path) -> None:
    """As `ray job stop` does it, or the end of a container; the same command goes on."""
    run = run_of(root, "stopped", train=LONG)
    process = two.begin("train", run)
    wait_for(lambda: steps(run) > 30, "the thirtieth step")
    process.terminate()
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, output
    assert f"stopped; the same command goes on from step {last_step(run):,}" in output
    assert 30 < last_step(run) < 420
    two.do("train", run)
    assert_undisturbed(run)


def test_node_that_is_drained_leaves_a_checkpoint(two: Nodes, root: Path) -> None:
    """SIGTERM to `ray start`, as a machine that shuts down sends it; another node takes its place."""
    run = run_of(root, "drained", train=LONG)
    process = two.begin("train", run)
    two.add("spare")
    wait_for(lambda: steps(run) > 30, "the thirtieth step")
    used = next(name for name in ("one", "two", "spare") if two.of[name].workers())
    two.of[used].process.terminate()
    assert 30 < going_on_from(ended(process), "a machine is about to go") < 420
    assert two.of[used].process.wait(WAIT_S) != 0
    two.end(used)
    assert_undisturbed(run)


def test_lost_node_is_waited_for(two: Nodes, root: Path) -> None:
    """Its raylet and all its processes are killed; the run goes on when another node is there."""
    run = run_of(root, "lost", train=LONG | {"checkpoint_every_steps": 50})
    process = two.begin("train", run)
    wait_for(lambda: steps(run) > 120, "the 120th step")
    two.end("two")
    two.add("another")
    output = ended(process)
    assert going_on_from(output, r"workers lost \(\w+, 1 of 2 times\)") % 50 == 0
    assert_undisturbed(run)


def test_elastic_run_goes_on_with_fewer_workers_and_then_with_more(two: Nodes, root: Path) -> None:
    """The one worker is held, that the run does not end before another node is there."""
    elastic = {"min_workers": 1, "resize_every_s": 3}
    run = run_of(root, "elastic", train=LONG | {"checkpoint_every_steps": 50}, resources=elastic)
    process = two.begin("train", run)

    def num_workers() -> int:
        path = run.run_dir / "environment.json"
        return int(json.loads(path.read_text())["num_workers"]) if path.exists() else 0

    wait_for(lambda: steps(run) > 120, "the 120th step")
    assert num_workers() == 2
    two.end("two")
    wait_for(lambda: num_workers() == 1, "training with one worker")
    (worker,) = two.of["one"].workers()
    os.kill(worker, signal.SIGSTOP)
    assert steps(run) < 3 * 420
    two.add("another")
    ended(process)
    assert num_workers() == 2
    assert_undisturbed(run, rtol=1e-3)


def test_after_the_driver_was_killed_the_same_command_goes_on(two: Nodes, root: Path) -> None:
    run = run_of(root, "driver", train=LONG | {"checkpoint_every_steps": 50})
    process = two.begin("train", run)
    wait_for(lambda: steps(run) > 120, "the 120th step")
    process.kill()
    process.wait()
    assert 100 <= last_step(run) < 3 * 420
    two.do("train", run)
    assert_undisturbed(run)


def test_after_the_head_was_killed_the_same_command_goes_on_on_the_next(root: Path) -> None:
    """With the head all is lost that Ray knows, and the job with it; what the run has on storage is not."""
    run = run_of(root, "head", train=LONG | {"checkpoint_every_steps": 50})
    with started(None, cpus=0) as head:
        nodes = Nodes(head)
        nodes.add("one", cpus=2)
        process = nodes.begin("train", run)
        wait_for(lambda: steps(run) > 120, "the 120th step")
        mark = f"MMRAY_TEST_CLUSTER={head.environment['MMRAY_TEST_CLUSTER']}"
        (gcs,) = (pid for pid in processes_of(mark) if b"gcs_server" in command_of(pid))
        os.killpg(os.getpgid(gcs), signal.SIGKILL)
        output, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode != 0, output
    assert 100 <= last_step(run) < 3 * 420
    with started(None, cpus=0) as head:
        nodes = Nodes(head)
        nodes.add("one", cpus=2)
        nodes.do("train", run)
    assert_undisturbed(run)


def test_full_disk_ends_the_run_with_what_is_missing(two: Nodes, root: Path, tmp_path: Path) -> None:
    """The run folder is on a disk of 300 kB, which something else has filled for the most part."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount a small disk")
    try:
        run = run_of(root, "full").model_copy(update={"out": str(disk)})
        rest = disk / "rest"
        rest.write_bytes(b"x" * 240_000)
        output, _ = (process := two.begin("train", run)).communicate(timeout=WAIT_S)
        assert process.returncode == 1, output
        assert re.search(r"error: .*disk of .* is full: the checkpoint of step 16 takes about .* are missing", output)
        rest.unlink()
        two.do("train", run)
        assert_undisturbed(run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
