"""Starting Ray: its settings, its silence, and a check that what is asked for is there."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mmray import config
from mmray.console import say
from mmray.storage import at

# Set before Ray is imported, and inherited by every process that it starts.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the controller's poll; its default of 2 s delays every report
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else what a worker prints appears twice
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
# What Ray would otherwise say while all is well; `-v` lets it speak.
_QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "PYTHONWARNINGS": "ignore",
}


def settings(verbose: bool) -> dict[str, str]:
    """The environment that Ray's processes run in."""
    return _SETTINGS | ({} if verbose else _QUIET)


def start(verbose: bool = False) -> None:
    """Connect to the cluster of RAY_ADDRESS, or start Ray on this machine; nothing if it runs already."""
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # without .pyc files every Ray process compiles everything anew
    for key, value in settings(verbose).items():
        os.environ.setdefault(key, value)
    if is_local():
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
    import ray

    if ray.is_initialized():
        return
    # address: without it Ray would join whatever cluster was last started on this machine.
    local = {"address": "local", "include_dashboard": False} if is_local() else {}
    ray.init(logging_level=logging.INFO if verbose else logging.ERROR, log_to_driver=verbose, **local)


@contextmanager
def without_core_remarks() -> Iterator[None]:
    """Keep off the terminal what Ray's C++ core has to say of Ray's own library code, unless `start` was verbose."""
    if "RAY_DATA_DISABLE_PROGRESS_BARS" not in os.environ:
        yield
        return
    terminal, (reading, writing) = os.dup(2), os.pipe()

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if b"core_worker.cc" not in line:
                    os.write(terminal, line)

    thread = threading.Thread(target=pass_on, name="mmray-stderr", daemon=True)
    thread.start()
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        thread.join(timeout=1)
        os.close(terminal)


def is_local() -> bool:
    """Whether Ray is, or would be, started by this process on this machine alone."""
    return "RAY_ADDRESS" not in os.environ


def warn_of_relative_paths(run: config.Run) -> None:
    """Say so where a job would read and write inside the copy of the working folder that Ray makes, and deletes."""
    paths = {"out": run.out, "prepare.out": run.prepare.out, "dataset.path": getattr(run.dataset, "path", "/")}
    if text := getattr(run.dataset, "text", None):
        paths["dataset.text.cache"] = text.cache
    relative = [key for key, path in paths.items() if not at(path).is_absolute()]
    if relative and not is_local() and "runtime_resources" in Path.cwd().parts:
        say(
            f"warning: {', '.join(relative)} are relative, so they lie in {Path.cwd()}, which Ray deletes later; "
            f"--set them to absolute paths on storage that all nodes share"
        )


def ray_data() -> ModuleType:
    """The module `ray.data`, as talkative as `start` was told."""
    import ray.data

    if os.environ.get("RAY_DATA_DISABLE_PROGRESS_BARS") == "1":
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # only after the import, which sets its own level
    return ray.data


def placement(place: config.Place) -> dict[str, Any]:
    """What a stage of Ray Data takes to have its tasks or actors on the machines of a place."""
    given = {"resources": dict(place.custom), "label_selector": dict(place.labels)}
    return {name: value for name, value in given.items() if value}


def cluster_cpus() -> float:
    """CPUs of the whole cluster."""
    import ray

    return float(ray.cluster_resources().get("CPU", 0))
