"""What a person sees: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_PLAIN_EVERY_S = 5.0


class Advance(Protocol):
    """Moves a progress display on."""

    def __call__(self, done: int, note: str = "") -> None:
        """`done` units are finished in all; `note` is shown beside the count. Without a note no plain line is due."""


def say(text: str) -> None:
    """One line on standard output."""
    print(text, flush=True)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how far `total` units of work have come."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
            TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns) as bars:
            bar = bars.add_task(label, total=total, note="")
            yield lambda done, note="": bars.update(bar, completed=done, **({"note": note} if note else {}))
        return
    began = last = time.perf_counter()

    def advance(done: int, note: str = "") -> None:
        nonlocal last
        now = time.perf_counter()
        if note and (done >= total or now - last >= _PLAIN_EVERY_S):
            last = now
            say(f"{label}: {done:,} of {total:,} {unit}, {now - began:.0f} s, {note}")

    yield advance
