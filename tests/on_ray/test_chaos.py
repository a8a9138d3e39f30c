"""Training under random kills comes to the same numbers as undisturbed."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from nodes import Nodes, ended, run_of, undisturbed, values_of, wait_for

from mmray.training.run_folder import read_log

pytest_plugins = ["nodes"]
pytestmark = [pytest.mark.ray, pytest.mark.chaos]
KILLS = 4


def test_training_under_random_kills_is_that_of_an_undisturbed_run(nodes: Nodes, root: Path) -> None:
    """Four times SIGKILL for one of the two workers, at steps drawn at random, in the order in which they come.

    Every step stands in the log once and every validation saw every row; losses and scores are those without kills.
    """
    nodes.have("one", "two")
    train = {"epochs": 3, "batch_size": 2, "checkpoint_every_steps": 37, "clip_norm": 1.0, "ema_decay": 0.99}
    run = run_of(root, "chaos", train=train, resources={"max_failures": KILLS})
    rng = np.random.default_rng(9)
    num_steps = 3 * 420
    process = nodes.begin("train", run)
    for step in sorted(rng.integers(40, num_steps - 150, KILLS).tolist()):
        wait_for(lambda: process.poll() is not None or reached(run.run_dir) >= step, f"step {step}")  # noqa: B023
        workers = wait_for(lambda: [pid for node in nodes.of.values() for pid in node.workers()], "workers")
        with suppress(ProcessLookupError):
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
    output = ended(process)
    assert 1 <= output.count("workers lost") <= KILLS, output
    ours, reference = read_log(run.run_dir), undisturbed(run)
    assert [(line["event"], line["step"]) for line in ours] == [(line["event"], line["step"]) for line in reference]
    np.testing.assert_allclose(values_of(ours), values_of(reference), rtol=1e-3)
    for key in ("train_rows", "val_rows"):
        assert values_of(ours, key, "epoch") == values_of(reference, key, "epoch")
    for key in ("train/loss", "val/loss", "val/gap", "val/map", "val/hit_at_1"):
        np.testing.assert_allclose(
            values_of(ours, key, "epoch"), values_of(reference, key, "epoch"), rtol=1e-3, err_msg=key
        )


def reached(run_dir: Path) -> int:
    """The last step in the log."""
    return max(values_of(read_log(run_dir), "step"), default=0)
