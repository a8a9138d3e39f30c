"""The log of a run: `metrics.jsonl` and TensorBoard events, both written by rank 0 alone."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mmray.files import write_text
from mmray.storage import RemotePath, is_remote
from mmray.training.run_folder import read_log


class RunLog:
    """Appends to the log of a run from `step` on. What an earlier attempt wrote beyond `step` is dropped."""

    def __init__(self, run_dir: Path, step: int, settings: Mapping[str, Any], monitor: str) -> None:
        # Nothing can be appended to in a store: there the log is written on this machine, and brought by `store`.
        self._scratch = tempfile.TemporaryDirectory(prefix="mmray-") if is_remote(run_dir) else None
        self._here, self._run_dir = Path(self._scratch.name) if self._scratch else run_dir, run_dir
        self._stored: dict[Path, int] = {}
        kept = [line for line in read_log(run_dir) if line["step"] <= step]
        write_text(self._here / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        self._file = (self._here / "metrics.jsonl").open("a", buffering=1)
        self._began = time.perf_counter() - (kept[-1]["time_s"] if kept else 0.0)
        self._board = SummaryWriter(
            str(self._here / "tensorboard"), purge_step=step + 1 if list(run_dir.glob("tensorboard/*")) else None
        )
        if not step:
            plain = {k: v if isinstance(v, (bool, int, float, str)) else json.dumps(v) for k, v in settings.items()}
            for summary in hparams(plain, {monitor: None}):  # type: ignore[no-untyped-call]
                self._board._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def write(
        self, event: str, epoch: int, step: int, values: Mapping[str, float], labels: Mapping[str, str | int]
    ) -> None:
        """Add one line. `step` counts finished optimiser steps; `labels` is what is no curve: TensorBoard lacks it."""
        time_s = time.perf_counter() - self._began
        line = {"event": event, "epoch": epoch, "step": step, **labels, **values, "time_s": time_s}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            tag = name if "/" in name else f"speed/{name}"
            self._board.add_scalar(tag if event == "epoch" else tag.replace("/", "_by_step/", 1), value, step)
        self._board.flush()

    def store(self) -> None:
        """Bring what was written so far to the run folder, where that is in a store."""
        if self._scratch is None:
            return
        for file in sorted(path for path in self._here.rglob("*") if path.is_file()):
            if self._stored.get(file) != (size := file.stat().st_size):
                cast(RemotePath, self._run_dir / file.relative_to(self._here).as_posix()).upload(file)
                self._stored[file] = size

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()
        if self._scratch is None:
            return
        try:
            self.store()
        except OSError:
            if error is None:  # else that is what is to be told
                raise
        finally:
            self._scratch.cleanup()
