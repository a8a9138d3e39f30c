"""From tables to batches on their way to the device, made ahead of time by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from mmray import config
from mmray.prepared import Int64s, SplitReader, TrainOrder, shard_of_rows, train_order, train_tables
from mmray.tasks import Batch, Task
from mmray.training.context import Context

T = TypeVar("T")
TrainTables = Callable[[int, int], Iterator[pa.Table]]  # (epoch, first step of it) -> one table a step
ValTables = Callable[[], Iterator[pa.Table]]


def tables(
    run: config.Run,
    task: Task,
    folder: Path,
    context: Context,
    read: Callable[[SplitReader, TrainOrder, int, int, int], Iterator[pa.Table]] = train_tables,
) -> tuple[TrainTables, ValTables]:
    """What `fit` takes: this rank's rows of the prepared dataset in `folder`, for training and for validation."""
    info, rank, world_size = task.info, context.rank, context.world_size
    train, val = info.split("train"), info.split("val")
    columns = task.columns(labelled=True)

    def train_of(epoch: int, step: int) -> Iterator[pa.Table]:
        order = train_order(train, run.train, run.seed, epoch)
        return read(SplitReader(folder, train, columns), order, rank, world_size, step)

    def val_of() -> Iterator[pa.Table]:
        start, stop = shard_of_rows(val.rows, rank, world_size)
        return SplitReader(folder, val, columns).batches(start, stop, run.predict.batch_size)

    return train_of, val_of


def micro_batches(
    table: pa.Table,
    collate: Callable[[pa.Table], Batch],
    accumulate: int,
    lengths: Callable[[pa.Table], Int64s | None] | None = None,
) -> list[Batch]:
    """The rows of one step as `accumulate` batches, equal in size up to one row.

    `lengths` says how long each row is, or None where that does not matter: rows of like length then stand in one
    batch, from the shortest on. Which rows make up the step stays as it is, and with it the mean of their gradients.
    """
    length_of_rows = lengths(table) if lengths and accumulate > 1 else None
    if length_of_rows is not None:
        table = table.take(pa.array(np.argsort(length_of_rows, kind="stable")))
    bounds = [i * table.num_rows // accumulate for i in range(accumulate + 1)]
    return [collate(table.slice(low, high - low)) for low, high in pairwise(bounds) if high > low]


def ahead(make: Callable[[], Iterable[T]], depth: int = 2) -> Iterator[T]:
    """Iterate over `make()` in a thread, up to `depth` items ahead of the consumer.

    An error of the producer is raised at the consumer. When the consumer stops early the thread ends.
    """
    items: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None = None, end: bool = False) -> None:
        while not stopped.is_set():
            try:
                items.put((item, error, end), timeout=0.1)
                break
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in make():
                put(item)
                if stopped.is_set():
                    return
        except BaseException as error:
            put(None, error)
        else:
            put(None, end=True)

    thread = threading.Thread(target=produce, name="mmray-feed", daemon=True)
    thread.start()
    try:
        while True:
            item, error, end = items.get()
            if error is not None:
                raise error
            if end:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
