"""`mmray train`: the training loop in Ray Train workers, data-parallel over CPUs or GPUs."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmray import config, lookup, prepared
from mmray.console import Advance, progress, say
from mmray.on_ray import runtime
from mmray.on_ray.prepare import prepare
from mmray.schema import DatasetInfo
from mmray.training import run_folder
from mmray.training.checkpoint import TrainState, last
from mmray.training.optimisation import is_finished
from mmray.training.run_folder import read_log


def train(run: config.Run, verbose: bool = False) -> Path:
    """Train a run, or go on with it from its last checkpoint; return the run folder. Prepares the dataset first.

    ValueError where the cluster can't give what `resources` asks for.
    """
    folder = prepare(run, verbose)
    info = prepared.read_info(folder)
    run_dir = run_folder.open_run(run, info)
    before = last(run_dir)
    maximise: bool = lookup.load("task", run.task.name).Task.maximise
    if before and is_finished(run.train, before.monitored, maximise):
        say(f"{run_dir} is finished already: {_summary(before)}")
        return run_dir
    runtime.start(verbose)
    scaling = plan_workers(run.resources, runtime.cluster_cpus(), runtime.cluster_gpus())
    _fit(run, folder.absolute(), run_dir.absolute(), info, scaling)
    done = last(run_dir)
    assert done is not None  # fit() returned without an error
    say(f"trained {run_dir}: {_summary(done)}")
    return run_dir


def plan_workers(resources: config.Resources, cpus: float, gpus: float) -> dict[str, Any]:
    """Arguments of Ray's ScalingConfig; ValueError with the arithmetic where the cluster is too small."""
    workers = resources.num_workers
    use_gpu = gpus >= workers if resources.use_gpu == "auto" else resources.use_gpu
    if use_gpu and gpus < workers:
        raise ValueError(
            f"resources.num_workers={workers} needs {workers} GPUs, one a worker; the cluster has {gpus:g}. "
            f"Set resources.num_workers={int(gpus) or 1} or resources.use_gpu=false"
        )
    # Ray Data tasks that feed the workers need a CPU of their own, or nothing ever moves.
    kept = 1.0 if resources.feed == "ray_data" else 0.0
    share = resources.cpus_per_worker or min(1.0, (cpus - kept) / workers if cpus > kept else cpus / (workers + 1))
    if share * workers + kept > cpus and resources.cpus_per_worker:
        raise ValueError(
            f"resources.cpus_per_worker={share:g} x num_workers={workers} + {kept:g} for the feed = "
            f"{share * workers + kept:g} CPUs; the cluster has {cpus:g}. "
            f"Set resources.cpus_per_worker={max(0.1, (cpus - kept) / workers):.2g} or less"
        )
    return {
        "num_workers": workers,
        "use_gpu": use_gpu,
        "resources_per_worker": {"CPU": round(share, 3)} | ({"GPU": 1} if use_gpu else {}),
    }


def _fit(run: config.Run, folder: Path, run_dir: Path, info: DatasetInfo, scaling: dict[str, Any]) -> None:
    """Train to the end. Lost workers are replaced up to `max_failures` times; a mistake in the input is not retried."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        """Without two helper actors whose processes cost two seconds of start-up and have nothing to do here."""

        def _create_default_callbacks(self) -> list[Any]:
            idle = {"DatasetsCallback"}  # hands out `datasets=`, of which there are none
            if runtime.is_local():
                idle.add("PlacementGroupCleanerCallback")  # asks the dashboard, which does not run
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in idle]

    for failures in itertools.count(1):
        with tempfile.TemporaryDirectory(prefix="mmray-") as scratch, _watch(run, run_dir, info):
            trainer = Trainer(
                _work,
                train_loop_config={"run": run.to_dict(), "folder": str(folder), "run_dir": str(run_dir)},
                scaling_config=ScalingConfig(**scaling),
                # Checkpoints and metrics go to the run folder; Ray needs a place for its own notes only.
                run_config=RunConfig(
                    name=f"{run.name}-{time.time_ns()}",
                    storage_path=scratch,
                    failure_config=FailureConfig(controller_failure_limit=3),
                ),
            )
            try:
                trainer.fit()
                return
            except WorkerGroupError as error:
                # Ray wraps what a worker raised; the cause itself is what a user can act on.
                causes = [getattr(e, "_base_exc", e) for e in error.worker_failures.values()]
                for cause in causes:
                    if isinstance(cause, (ValueError, FloatingPointError, OSError)):
                        raise cause from None
                if failures > run.resources.max_failures:
                    raise
                say(f"workers lost ({type(causes[0]).__name__}); going on from the last checkpoint, try {failures + 1}")


def _work(settings: dict[str, Any]) -> None:
    """One worker: build the context of the loop from Ray's, and run it."""
    import ray.train
    import ray.train.torch
    import torch

    from mmray.tasks import build
    from mmray.training import feed
    from mmray.training.context import Context
    from mmray.training.loop import fit

    run = config.from_dict(settings["run"])
    folder, run_dir = Path(settings["folder"]), Path(settings["run_dir"])
    ray_context = ray.train.get_context()
    rank, world_size = ray_context.get_world_rank(), ray_context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // ray_context.get_local_world_size()))
    else:
        torch.set_float32_matmul_precision("high")
    context = Context(run_dir, device, rank, world_size, report=ray.train.report)
    task = build(run, prepared.read_info(folder))
    read = _ray_data_tables if run.resources.feed == "ray_data" else prepared.train_tables
    fit(run, task, *feed.tables(run, task, folder, context, read), context)


def _ray_data_tables(
    reader: prepared.SplitReader, order: prepared.TrainOrder, rank: int, world_size: int, start_step: int = 0
) -> Iterator[pa.Table]:
    """What `prepared.train_tables` gives, read and mixed by Ray Data tasks, one a window."""
    ray_data = runtime.ray_data()

    def read(windows: pa.Table) -> pa.Table:
        (window,) = windows.column("id").to_pylist()
        return reader.take(order.rows(first + window, rank, world_size).reshape(-1))

    first = start_step // order.steps_per_window
    ray_data.DataContext.get_current().execution_options.preserve_order = True
    windows = ray_data.range(order.num_windows - first, override_num_blocks=order.num_windows - first)
    data = windows.map_batches(read, batch_size=1, batch_format="pyarrow")
    rows = (rank + 1) * order.batch_size // world_size - rank * order.batch_size // world_size
    tables = data.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=1)
    yield from itertools.islice(tables, start_step - first * order.steps_per_window, None)


@contextmanager
def _watch(run: config.Run, run_dir: Path, info: DatasetInfo) -> Iterator[None]:
    """Show on the console what the workers write to the run's log."""
    steps_per_epoch = info.split("train").rows // run.train.batch_size
    ended = threading.Event()
    seen = len(read_log(run_dir))

    def follow() -> None:
        nonlocal seen
        with progress("train", run.train.epochs * steps_per_epoch, "steps") as advance:
            while True:
                final = ended.wait(0.3)  # read once more after the end
                lines = read_log(run_dir)
                for line in lines[min(seen, len(lines)) :]:
                    _show(line, run.train.epochs, advance)
                seen = len(lines)
                if final:
                    return

    thread = threading.Thread(target=follow, name="mmray-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(line: dict[str, Any], epochs: int, advance: Advance) -> None:
    speed = f"{line['rows_per_s']:,.0f} rows/s, waiting for input {line['input_wait_percent']:.1f} %"
    if line["event"] == "step":
        advance(line["step"], f"loss {line['train/loss']:.4f}, {speed}")
    else:
        advance(line["step"])
        scores = ", ".join(f"{key} {value:.4f}" for key, value in line.items() if key.startswith("val/"))
        say(f"epoch {line['epoch'] + 1}/{epochs}: train/loss {line['train/loss']:.4f}, {scores} ({speed})")


def _summary(state: TrainState) -> str:
    scores = ", ".join(f"{name} {value:.4f}" for name, value in state.metrics.items() if name.startswith("val/"))
    return f"{state.epoch} epochs, {state.step:,} steps, {scores}"
