"""`mmray train`: the training loop in Ray Train workers, data-parallel over CPUs or GPUs."""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from mmray import config, prepared
from mmray.console import Advance, progress, say
from mmray.files import locked
from mmray.on_ray import runtime
from mmray.on_ray.machines import cluster_of_ray
from mmray.on_ray.plan import Plan, plan
from mmray.on_ray.prepare import prepare, prepare_for
from mmray.schema import DatasetInfo
from mmray.storage import at, is_remote
from mmray.study import is_study
from mmray.tasks import Task, build, monitored
from mmray.training import phases, run_folder
from mmray.training.checkpoint import TrainState, best, last
from mmray.training.optimisation import is_finished
from mmray.training.run_folder import new_lines


def train(run: config.Run, verbose: bool = False) -> Path:
    """Train a run, or go on with it from its last checkpoint; return the run folder. Prepares the dataset first.

    ValueError where the run does not fit its data or the cluster, before anything is launched.
    """
    run = run.model_copy(update={"tune": None})
    run_dir = run.run_dir
    if run.ensemble is not None and run.ensemble.method != "soup":
        raise ValueError(f"{run_dir} is an ensemble; train its members")
    if is_study(run_dir):
        raise ValueError(f"{run_dir} holds a search; give this run a name of its own, --set name=...")
    with locked(run_dir.with_name(f".{run_dir.name}.lock"), f"training {run_dir}", wait=False):
        begun = run_folder.is_begun(run_dir)
        folder = prepare_for(run, run_dir, verbose) if begun else prepare(run, verbose)
        info = prepared.read_info(folder)
        task = build(run, info)
        check_rows(run, task)
        run_folder.open_run(run, info)
        _check_model(run, task)
        before = last(run_dir)
        if before and is_finished(run.train, before.monitored, monitored(run, task)[1]):
            say(f"{run_dir} is finished already: {_summary(before)}")
            return run_dir
        runtime.start(verbose)
        _fit(run, folder.absolute(), run_dir.absolute(), info, plan(run, cluster_of_ray(), info=info))
    done, finest = last(run_dir), best(run_dir, *monitored(run, task))
    assert done is not None  # fit() returned without an error
    say(f"trained {run_dir}: {_summary(done)}")
    if finest.step != done.step:
        say(f"the best of it, which predicts: {_summary(finest)}")
    return run_dir


def _check_model(run: config.Run, task: Task) -> None:
    """Say how large the model is; ValueError where the run names parameters that it has not."""
    with torch.device("meta"):
        model = task.build_model()
    phases.check_patterns(run.train, model)
    facts = {"parameters": sum(p.numel() for p in model.parameters()), **task.describe(model)}
    say(f"{run.name}: " + ", ".join(f"{value:,.0f} {name.replace('_', ' ')}" for name, value in facts.items()))


def check_rows(run: config.Run, task: Task) -> None:
    """ValueError where the rows are too few for a step, lack labels, or a step is too small for the workers."""
    info = task.info
    batch_size, workers = run.train.batch_size, run.resources.num_workers
    if batch_size < workers:
        raise ValueError(
            f"train.batch_size={batch_size} gives some of resources.num_workers={workers} no row; raise it"
        )
    if info.split("train").rows < batch_size:
        raise ValueError(
            f"train.batch_size={batch_size} is more than the {info.split('train').rows:,} training rows; lower it"
        )
    for name in ("train", "val"):
        split = info.split(name)
        if split.labelled_rows == 0:
            raise ValueError(
                f"split {name!r} of {info.id} has no labels at all: there is nothing to learn or to compare"
            )
        if task.all_labelled and split.labelled_rows < split.rows:
            raise ValueError(
                f"{split.rows - split.labelled_rows:,} of {split.rows:,} rows in split {name!r} of {info.id} have no "
                f"label; label them, or leave them out"
            )


def _fit(run: config.Run, folder: Path, run_dir: Path, info: DatasetInfo, placed: Plan) -> None:
    """Train to the end, with other workers where some are lost or their machines are about to go.

    Workers may be lost `max_failures` times without notice; a mistake of the program or its input is not tried again.
    """
    from ray.train import ControllerError, PreemptionError, WorkerGroupError

    from mmray.on_ray import notice

    failures = 0
    while True:
        name, scratch = f"{run.name}-{time.time_ns()}", tempfile.TemporaryDirectory(prefix="mmray-")
        with scratch, _watch(run, run_dir, info), notice.passed_on(name) as told_to_stop:
            try:
                if _trainer(run, folder, run_dir, placed, name, scratch.name).fit().return_value == _FINISHED:
                    return
                why = "a machine is about to go"
            except PreemptionError:
                why = "a machine has gone"
            except (WorkerGroupError, ControllerError) as error:
                failures += 1
                why = f"workers lost ({type(_loss(error)).__name__}, {failures} of {run.resources.max_failures} times)"
                if failures > run.resources.max_failures:
                    raise
        done = last(run_dir)
        where = f"step {done.step:,}" if done else "the begin"
        if told_to_stop.is_set():
            say(f"stopped; the same command goes on from {where}")
            raise SystemExit(128 + signal.SIGTERM)
        say(f"{why}; going on from {where}")
        placed = _placed_again(run, info)


def _loss(error: Any) -> BaseException:
    """What became of the workers. Raises a mistake of the program or its input, which one can act on, unwrapped.

    Whoever is lost breaks the connections of the others, whose errors may be known first.
    """
    if hasattr(error, "controller_failure"):
        if type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
            return error.controller_failure  # type: ignore[no-any-return]
        raise error
    causes = [getattr(e, "_base_exc", e) for e in error.worker_failures.values()]
    lost = [cause for cause in causes if type(cause).__module__.startswith("ray.")]
    lost += [cause for cause in causes if isinstance(cause, RuntimeError) and _BROKEN.search(str(cause))]
    if lost:
        return lost[0]
    raise next((cause for cause in causes if not isinstance(cause, RuntimeError)), causes[0]) from error


def _placed_again(run: config.Run, info: DatasetInfo) -> Plan:
    """How the run is placed on the machines that are left; waits for others where they are too few."""
    deadline, told = time.monotonic() + run.resources.max_wait_s, False
    while True:
        try:
            return plan(run, cluster_of_ray(), info=info)
        except ValueError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                say(f"waiting {run.resources.max_wait_s:g} s for machines: {error}")
            told = True
        time.sleep(1)


def _trainer(run: config.Run, folder: Path, run_dir: Path, placed: Plan, name: str, scratch: str) -> Any:
    """Ray's trainer of one group of workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from mmray.on_ray.notice import Listen

    class Trainer(TorchTrainer):
        """Without two helper actors whose processes cost two seconds of start-up and have nothing to do here."""

        def _create_default_callbacks(self) -> list[Any]:
            idle = {"DatasetsCallback"}  # hands out `datasets=`, of which there are none
            if runtime.is_local():
                idle.add("PlacementGroupCleanerCallback")  # asks the dashboard, which does not run
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in idle]

    is_elastic = run.resources.min_workers is not None
    if not is_elastic:  # machines that an autoscaler adds take minutes; to be fewer would not help
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{run.resources.max_wait_s:g}")
    return Trainer(
        _work,
        train_loop_config={"run": run.to_dict(), "folder": str(folder), "run_dir": str(run_dir)},
        scaling_config=ScalingConfig(**placed.scaling),
        # Beside NCCL for gradients, which is Ray's choice for GPUs, Gloo for what is on the CPU: `Context.ask_to_stop`.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if placed.use_gpu else "gloo"),
        # Checkpoints and metrics go to the run folder; Ray needs a place for its own notes only.
        run_config=RunConfig(
            name=name,
            storage_path=scratch,
            failure_config=FailureConfig(controller_failure_limit=3 if is_elastic else 0, max_preemption_failures=0),
            callbacks=[Listen(name)],
        ),
    )


_FINISHED = "finished"
_SILENT_S = 120  # without a step, until that is said
_BROKEN = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer", re.IGNORECASE)  # of torch.distributed


def _work(settings: dict[str, Any]) -> str:
    """One worker: build the context of the loop from Ray's, and run it; returns whether it came to its end."""
    import ray.train
    import ray.train.torch

    from mmray.on_ray import notice
    from mmray.training import feed
    from mmray.training.context import Context
    from mmray.training.loop import fit
    from mmray.training.trained import to_train

    run = config.from_dict(settings["run"])
    folder, run_dir = at(settings["folder"]), at(settings["run_dir"])
    ray_context = ray.train.get_context()
    rank, world_size = ray_context.get_world_rank(), ray_context.get_world_size()
    device = ray.train.torch.get_device()
    share = len(os.sched_getaffinity(0)) // ray_context.get_local_world_size()
    set_up_process(device, int(run.resources.cpus_per_worker or share))
    context = Context(run_dir, device, rank, world_size, report=ray.train.report, stopping=notice.is_given)
    task = to_train(run, prepared.read_info(folder), run_dir)
    by_ray_data = functools.partial(_ray_data_tables, place=run.resources.data)
    read = by_ray_data if run.resources.feed == "ray_data" else prepared.train_tables
    state = fit(run, task, *feed.tables(run, task, folder, context, read), context)
    return _FINISHED if is_finished(run.train, state.monitored, monitored(run, task)[1]) else "stopped"


def set_up_process(device: torch.device, num_threads: int) -> None:
    """Set this process up to train on a device; `num_threads` at least one, on CPUs."""
    if device.type == "cpu":
        torch.set_num_threads(max(1, num_threads))
        _keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("high")


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    It would hand large blocks back to the system at once, and the next step would wait for every page of them again:
    half the time of a step of DenseASPP.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return
    max_mmaps, trim_threshold, top_pad = -4, -1, -2  # as malloc.h numbers them
    mallopt(max_mmaps, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 256 << 20)


def _ray_data_tables(
    reader: prepared.SplitReader,
    order: prepared.TrainOrder,
    rank: int,
    world_size: int,
    start_step: int = 0,
    *,
    place: config.DataPlace,
) -> Iterator[pa.Table]:
    """What `prepared.train_tables` gives, read and mixed by Ray Data tasks, one a window, at a place."""
    ray_data = runtime.ray_data()

    def read(windows: pa.Table) -> pa.Table:
        (window,) = windows.column("id").to_pylist()
        return reader.take(order.rows(first + window, rank, world_size).reshape(-1))

    first = start_step // order.steps_per_window
    ray_data.DataContext.get_current().execution_options.preserve_order = True
    windows = ray_data.range(order.num_windows - first, override_num_blocks=order.num_windows - first)
    data = windows.map_batches(
        read, batch_size=1, batch_format="pyarrow", num_cpus=place.cpus, **runtime.placement(place)
    )
    rows = (rank + 1) * order.batch_size // world_size - rank * order.batch_size // world_size
    tables = data.iter_batches(batch_size=rows, batch_format="pyarrow", prefetch_batches=1)
    yield from itertools.islice(tables, start_step - first * order.steps_per_window, None)


@contextmanager
def _watch(run: config.Run, run_dir: Path, info: DatasetInfo) -> Iterator[None]:
    """Show on the console what the workers write to the run's log."""
    steps_per_epoch = info.split("train").rows // run.train.batch_size
    ended = threading.Event()
    log = new_lines(run_dir)
    next(log)  # what an earlier attempt wrote

    def follow() -> None:
        silent_until: float | None = time.monotonic() + _SILENT_S
        with progress("train", run.train.epochs * steps_per_epoch, "steps") as advance:
            while True:
                final = ended.wait(3.0 if is_remote(run_dir) else 0.3)  # read once more after the end
                for line in next(log):
                    _show(line, run.train.epochs, advance)
                    silent_until = None
                if silent_until and time.monotonic() > silent_until:
                    silent_until = None
                    say(
                        f"no step yet after {_SILENT_S} s: it is a long one, or what others run has all of the machines"
                    )
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
