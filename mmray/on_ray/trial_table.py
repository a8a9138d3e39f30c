"""What a person sees of a search: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmray.console import say
from mmray.on_ray.search import Watcher
from mmray.study import TrialInfo
from mmray.tuning import Values, describe

if TYPE_CHECKING:
    from rich.table import Table

_MAX_ROWS = 20
_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}


@dataclass
class _Row:
    values: Values
    began: float
    state: str = "running"
    epoch: int = 0
    value: float | None = None
    note: str = ""
    seconds: float | None = None


class TrialTable(Watcher):
    """The trials of a search: parameters, first objective, epochs, state. Plain lines: one a trial that ends."""

    def __init__(self, objective: str, direction: str, samples: int, before: list[TrialInfo]) -> None:
        self._objective, self._sign, self._samples = objective, 1 if direction == "max" else -1, samples
        self._rows = {trial.number: self._row_of(trial) for trial in before if trial.state != "running"}

    def begins(self, number: int, values: Values) -> None:
        """See `Watcher`."""
        self._rows[number] = _Row(values, time.monotonic())

    def epoch(self, number: int, epoch: int, value: float | None) -> None:
        """See `Watcher`."""
        self._rows[number].epoch, self._rows[number].value = epoch, value

    def ends(self, trial: TrialInfo) -> None:
        """See `Watcher`."""
        began = self._rows[trial.number].began
        row = self._rows[trial.number] = self._row_of(trial)
        row.seconds = time.monotonic() - began
        if sys.stdout.isatty():
            return
        done = sum(row.state != "running" for row in self._rows.values())
        what = self._said(row) if row.value is not None else row.note
        note = f" {row.note}" if row.note and row.value is not None else ""
        say(
            f"trial {trial.number} {row.state}: {what}{note} ({describe(row.values)}; {row.epoch} epochs, "
            f"{row.seconds:.1f} s); {done} of {self._samples}, best {self._best_said()}"
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table while the search goes on, where there is a terminal."""
        if not sys.stdout.isatty():
            yield
            return
        from rich.live import Live

        with Live(get_renderable=self.table, refresh_per_second=4):
            yield

    def table(self) -> Table:
        """The newest trials, and the best one."""
        from rich.table import Table

        done = sum(row.state != "running" for row in self._rows.values())
        table = Table(title=f"{done} of {self._samples} trials, best {self._best_said()}", title_justify="left")
        for column, justify in (
            ("trial", "right"), ("parameters", "left"), (self._objective, "right"), ("epochs", "right"),
            ("s", "right"), ("state", "left"),
        ):  # fmt: skip
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        best = self._best()
        for number in sorted(self._rows)[-_MAX_ROWS:]:
            row = self._rows[number]
            seconds = time.monotonic() - row.began if row.seconds is None else row.seconds
            table.add_row(
                f"{number}{' *' if number == best else ''}",
                describe(row.values),
                "" if row.value is None else f"{row.value:.4f}",
                str(row.epoch),
                f"{seconds:.0f}",
                f"[{_STYLES[row.state]}]{row.state}[/]" + (f" {row.note}" if row.note else ""),
            )
        return table

    def _row_of(self, trial: TrialInfo) -> _Row:
        epoch, value = trial.curve[-1] if trial.curve else (0, None)
        return _Row(
            trial.values,
            time.monotonic(),
            trial.state,
            epoch,
            trial.objectives.get(self._objective, value),
            trial.reason.splitlines()[0] if trial.reason else "",
            trial.seconds,
        )

    def _best(self) -> int | None:
        found = [
            (self._sign * row.value, -n)
            for n, row in self._rows.items()
            if row.state == "complete" and row.value is not None
        ]
        return -max(found)[1] if found else None

    def _best_said(self) -> str:
        best = self._best()
        return "none yet" if best is None else f"{self._said(self._rows[best])} of trial {best}"

    def _said(self, row: _Row) -> str:
        return f"{self._objective} {row.value:.4f}"
