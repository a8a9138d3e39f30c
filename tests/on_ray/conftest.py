"""Fixtures of tests that run a whole path on Ray. A test module has a fixture `sections`: those of its run file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmray import config
from mmray.evaluation import evaluate
from mmray.on_ray.predict import predict
from mmray.on_ray.train import train

Make = Callable[..., config.Run]


@pytest.fixture(scope="module")
def make(sections: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a run of the module's sections, of which keyword arguments change keys; all share one prepared dataset."""
    root = tmp_path_factory.mktemp("work")

    def run(name: str, **changes: dict[str, Any]) -> config.Run:
        values = {"name": name, "out": str(root / "runs"), **sections}
        values["prepare"] = {"out": str(root / "prepared")} | values.get("prepare", {})
        for section, change in changes.items():
            values[section] = values.get(section, {}) | change
        return config.from_dict(values)

    return run


@pytest.fixture(scope="module")
def trained(make: Make) -> Path:
    """The run folder of the run called "two", trained by two workers."""
    return train(make("two", resources={"num_workers": 2}))


@pytest.fixture(scope="module")
def scored(trained: Path) -> dict[str, Any]:
    """The scores of that run on the test split."""
    folder, data = predict(trained, "test")
    return evaluate(trained, folder.name, data)
