"""The notice that a run gets before it has to stop, so that it leaves a checkpoint of the step that it is at.

A training worker is told by SIGTERM, or by Ray as it drains the worker's node: its machine is about to go, and the run
goes on elsewhere. The driver is told by SIGTERM alone: that is for the whole run, and the driver tells the workers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray.experimental import internal_kv
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context

_LOOK_EVERY_S = 0.5
_told = threading.Event()


class Listen(WorkerCallback):
    """Makes workers listen for SIGTERM, and the first of them for what the driver leaves under `key` in Ray's store."""

    def __init__(self, key: str) -> None:
        self._key = key

    def after_init_train_context(self) -> None:
        """Called by Ray Train in the main thread of each worker, where alone one may listen for signals."""
        _told.clear()
        _on_sigterm(_told)
        if get_train_context().get_world_rank() == 0:
            threading.Thread(target=self._listen, name="mmray-notice", daemon=True).start()

    def _listen(self) -> None:
        while not _told.wait(_LOOK_EVERY_S):
            if internal_kv._internal_kv_exists(self._key):
                _told.set()


def is_given() -> bool:
    """Whether this worker knows that the run has to stop here."""
    # The public `ray.train.get_preemption_info` asks all workers, through an actor: too slow to be asked at each step.
    return _told.is_set() or get_train_context().preemption_context.preemption_info is not None


@contextmanager
def passed_on(key: str) -> Iterator[threading.Event]:
    """Within it SIGTERM to this process, the driver, is left under `key` for the workers. Yields whether it has come.

    In another than the main thread, where nobody may listen for signals, it never has.
    """
    came, ended = threading.Event(), threading.Event()

    def pass_on() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            if came.is_set():
                internal_kv._internal_kv_put(key, b"stop")
                return

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = _on_sigterm(came)
    thread = threading.Thread(target=pass_on, name="mmray-notice", daemon=True)
    thread.start()
    try:
        yield came
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
        if came.is_set():
            internal_kv._internal_kv_del(key)


def _on_sigterm(event: threading.Event) -> signal._HANDLER:
    """Have the first SIGTERM set an event, and the next do what it has done before; return that."""
    before = signal.getsignal(signal.SIGTERM)

    def told(number: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, told)
    return before
