"""One trial of a search as Ray Tune runs it: the loop of `mmray train`, epoch by epoch.

The trial's own process is rank 0. With several workers the others are actors in the trial's placement group. All of
them stay for the trials that follow, so that only the first one waits until Python, Ray and torch are imported.
"""

from __future__ import annotations

import contextlib
import gc
import json
import queue
import shutil
import socket
import statistics
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mmray import config, prepared
from mmray.files import locked, write_text, written_folder
from mmray.on_ray.train import set_up_process
from mmray.storage import at, fetched
from mmray.tasks import Task, monitored
from mmray.training import checkpoint, feed, run_folder
from mmray.training.checkpoint import TrainState
from mmray.training.context import Context
from mmray.training.loop import fit
from mmray.training.trained import to_train

Settings = dict[str, Any]  # of a trial: see `mmray.on_ray.executor.job_settings`
Judge = Callable[[int, dict[str, float]], bool]  # epochs that are finished, metrics -> whether to go on
_ENDED_WITHIN_S = 10.0


class Stopped(Exception):
    """The trial ends here: the search has decided so."""


class Trial(tune.Trainable):
    """Each step is an epoch of the trial's first seed; the last step is its outcome.

    Nothing is trained before the first step: while this process is being made, Tune may give its trial to another.
    """

    def setup(self, config: dict[str, str]) -> None:
        """Have the first trial of this process; `config["job"]` is its `Settings` as JSON."""
        self._peers: list[Any] = []
        self._take(json.loads(config["job"]))

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """End the trial before, if it was stopped, and have another in the same processes."""
        self._end()
        ray.get(self._at_work)
        self._take(json.loads(new_config["job"]))
        return True

    def cleanup(self) -> None:
        """End the trial, and the other workers."""
        with contextlib.suppress(Exception):
            self._end()
            self._dismiss()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run folder has the checkpoints."""

    def step(self) -> dict[str, Any]:
        """The next report of the trial. A mistake in what was tried is one too; raises where a process was lost."""
        if self._thread.ident is None:
            self._begin()
        elif self._asked:
            self._answers.put(True)
        found = self._next_report()
        if isinstance(found, BaseException):
            found = {"outcome": json.dumps({"failed": self._why(found)})}
            self._dismiss()  # some may still wait for one another
        self._asked = "epoch" in found
        return found | {"done": not self._asked}

    def _take(self, job: Settings) -> None:
        if job["size"] > 1 and not self._peers:
            self._gather(job)
        self._reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._asked = False
        self._thread = threading.Thread(
            target=self._train, args=(job, self._reports, self._answers), name="mmray-trial", daemon=True
        )
        self._job, self._at_work = job, list[Any]()

    def _begin(self) -> None:
        self._thread.start()
        self._at_work = [peer.train.remote(self._job, rank) for rank, peer in enumerate(self._peers, 1)]

    def _train(self, job: Settings, reports: queue.SimpleQueue[Any], answers: queue.SimpleQueue[bool]) -> None:
        def judge(epoch: int, metrics: dict[str, float]) -> bool:
            reports.put({"epoch": epoch, "metrics": json.dumps(metrics)})
            return answers.get()

        try:
            reports.put({"outcome": json.dumps({"metrics": train_job(job, 0, judge)})})
        except Stopped:
            pass
        except BaseException as error:
            run = job["runs"][0]
            try:
                write_text(at(run["out"]) / run["name"] / "error.txt", traceback.format_exc())
            finally:
                reports.put(error)

    def _next_report(self) -> Any:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._reports.get(timeout=0.5 if self._peers else None)
            if failures := self._failures(wait_s=0):  # of a worker without which the others wait for ever
                return failures[0]

    def _failures(self, wait_s: float) -> list[BaseException]:
        """The errors of the other workers."""
        if not self._at_work:
            return []
        ended, _ = ray.wait(self._at_work, num_returns=len(self._at_work), timeout=wait_s)
        return [error for error in map(_error_of, ended) if error is not None]

    def _why(self, error: BaseException) -> str:
        """What went wrong, in a line. Raises where a process was lost."""
        # Whoever fails breaks the connections of the others, whose own errors then say nothing.
        errors = [error, *self._failures(wait_s=5)]
        for found in errors:
            if isinstance(found, ray.exceptions.RayActorError):
                raise found
        told = next((found for found in errors if not isinstance(found, RuntimeError)), error)
        told = getattr(told, "cause", told)
        traceback.clear_frames(error.__traceback__)  # and the tensors in them
        return f"{type(told).__name__}: {told}".strip().removesuffix(":")

    def _end(self) -> None:
        """Have the loop of this process end, if it has not; raises where it does not, and Tune starts a new process."""
        if self._thread.is_alive():
            self._answers.put(False)
            self._thread.join(_ENDED_WITHIN_S)
        if self._thread.is_alive():
            raise RuntimeError("the trial before this one did not end")
        gc.collect()

    def _gather(self, job: Settings) -> None:
        """Start the other workers and connect them."""
        group, size = ray.util.get_current_placement_group(), job["size"]
        self._peers = [
            ray.remote(Peer)
            .options(
                **job["resources"],
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            )
            .remote()
            for rank in range(1, size)
        ]
        with socket.socket() as free:
            free.bind(("", 0))
            address = f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"
        joining = [peer.join.remote(address, rank, size, job["use_gpu"]) for rank, peer in enumerate(self._peers, 1)]
        join(address, 0, size, job["use_gpu"])
        ray.get(joining)

    def _dismiss(self) -> None:
        """End the other workers, which breaks what this one may still wait for."""
        for peer in self._peers:
            ray.kill(peer)
        if self._peers:
            self._end()
            dist.destroy_process_group()
        self._peers, self._at_work = [], []


class Peer:
    """Another worker of a trial."""

    def join(self, address: str, rank: int, size: int, use_gpu: bool) -> None:
        """Connect with the others."""
        join(address, rank, size, use_gpu)

    def train(self, job: Settings, rank: int) -> None:
        """This worker's part of a trial."""
        with contextlib.suppress(Stopped):
            train_job(job, rank, lambda epoch, metrics: True)
        gc.collect()


def join(address: str, rank: int, size: int, use_gpu: bool) -> None:
    """Connect this process with the others of a trial."""
    dist.init_process_group("nccl" if use_gpu else "gloo", init_method=address, rank=rank, world_size=size)


def train_job(job: Settings, rank: int, judge: Judge) -> dict[str, float]:
    """Train each run of a trial to its end; return what is measured of it, a mean over its seeds.

    `judge` is asked after each epoch of the first one, on rank 0. Raises Stopped where it says no.
    """
    set_up_process(torch.device("cuda" if job["use_gpu"] else "cpu"), job["threads"])
    found = [
        _train_run(config.from_dict(values), job, rank, judge if place == 0 else lambda epoch, metrics: True)
        for place, values in enumerate(job["runs"])
    ]
    return {name: statistics.fmean(one[name] for one in found) for name in found[0]}


def _train_run(run: config.Run, job: Settings, rank: int, judge: Judge) -> dict[str, float]:
    folder, run_dir = at(job["folder"]), run.run_dir
    info = prepared.read_info(folder)
    device = torch.device("cuda" if job["use_gpu"] else "cpu")
    # A worker of a search that was killed may not know it yet.
    lock = locked(run_dir / ".lock", f"training {run_dir}", wait=True)
    with lock if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            run_folder.open_run(run, info)
            if job["parent"] and not run_folder.is_begun(run_dir):
                _inherit(at(job["parent"]), run_dir)
        report = _Report(judge, rank, job["until_epoch"])
        context = Context(run_dir, device, rank, job["size"], report)
        context.wait_for_all()  # for what rank 0 has written
        report.begin(context)
        task = to_train(run, info, run_dir)
        if not report.is_reached:
            with contextlib.suppress(_Reached):
                fit(run, task, *feed.tables(run, task, folder, context), context)
        return _measured(run, task, folder, device, "latency_ms" in job["objectives"]) if rank == 0 else {}


class _Reached(Exception):
    """The last epoch that was asked for is done."""


class _Report:
    """Passes the metrics of each epoch on to the judge, and its answer to all ranks."""

    def __init__(self, judge: Judge, rank: int, until_epoch: int | None) -> None:
        self._judge, self._rank, self._until = judge, rank, until_epoch

    def begin(self, context: Context) -> None:
        """Tell of the epochs that were done before, of which the search may not have been told."""
        self._context = context
        self._epoch = (checkpoint.last(context.run_dir) or TrainState()).epoch
        go_on = True
        if self._rank == 0:
            done = [line for line in run_folder.read_log(context.run_dir) if line["event"] == "epoch"]
            go_on = all(self._judge(line["epoch"] + 1, _metrics_of(line)) for line in done[: self._epoch])
        self._obey(go_on)

    @property
    def is_reached(self) -> bool:
        return self._until is not None and self._epoch >= self._until

    def __call__(self, metrics: dict[str, float]) -> None:
        self._epoch += 1
        self._obey(self._judge(self._epoch, metrics) if self._rank == 0 else True)
        if self.is_reached:
            raise _Reached

    def _obey(self, go_on: bool) -> None:
        if not self._context.broadcast(go_on):
            raise Stopped


def _metrics_of(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if "/" in name}


def _inherit(parent: Path, run_dir: Path) -> None:
    """Begin a run with the last checkpoint of another, and with its log."""
    state = checkpoint.last(parent)
    assert state is not None  # the search has seen it finished
    write_text(run_dir / "metrics.jsonl", (parent / "metrics.jsonl").read_text(encoding="utf-8"))
    with written_folder(checkpoint.folder_of(run_dir, state.step)) as aside:
        for file in checkpoint.folder_of(parent, state.step).glob("*"):
            with fetched(file) as here:
                shutil.copyfile(here, aside / file.name)


def _measured(run: config.Run, task: Task, folder: Path, device: torch.device, with_latency: bool) -> dict[str, float]:
    """The metrics of the checkpoint that predicts, and the facts of the model that objectives may name."""
    metrics = checkpoint.best(run.run_dir, *monitored(run, task)).metrics
    with torch.device("meta"):
        num_parameters = sum(p.numel() for p in task.build_model().parameters())
    facts = {"num_parameters": float(num_parameters)}
    if with_latency:
        facts["latency_ms"] = _latency_ms(task, folder, device)
    return {name: value for name, value in metrics.items() if "/" in name} | facts


def _latency_ms(task: Task, folder: Path, device: torch.device) -> float:
    """Time of one row through the model, on this machine: the median of 20."""
    reader = prepared.SplitReader(folder, task.info.split("val"), task.columns(labelled=False))
    batch = task.collate(next(reader.batches(0, 1, 1))).to(device)
    model, seconds = task.build_model().to(device).eval(), []
    with torch.inference_mode():
        for _ in range(25):
            began = time.perf_counter()
            task.evaluate(model, batch)[0].cpu()  # which waits for the device
            seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[5:])


def _error_of(reference: Any) -> BaseException | None:
    try:
        ray.get(reference)
    except Exception as error:
        return error
    return None
