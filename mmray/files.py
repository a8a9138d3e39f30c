"""Files that are either whole or absent: written aside, then renamed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmray.console import say


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o644)  # mkstemp makes files that only their owner may read
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole. Not a number is an error: no reader but Python's takes it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def publish_folder(aside: Path, final: Path) -> None:
    """Make the finished folder `aside` appear as `final`, in place of one that may stand there."""
    if final.exists():
        old = Path(tempfile.mkdtemp(dir=final.parent, prefix=".deleted-"))
        final.rename(old / final.name)
        aside.rename(final)
        shutil.rmtree(old)
    else:
        aside.rename(final)


def delete_folder(folder: Path) -> None:
    """Delete a folder so that a crash leaves either all of it or nothing under its name."""
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".deleted-"))
    folder.rename(old / folder.name)
    shutil.rmtree(old)


def delete_leftovers(folder: Path) -> None:
    """Delete what a crash left of writing and deleting folders in `folder`; nobody else may be at work there."""
    for pattern in (".writing-*", ".deleted-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def locked(path: Path, doing: str, wait: bool) -> Iterator[None]:
    """Hold the lock file `path`, against other processes. Where it is held, wait for it, or raise ValueError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ValueError(f"another process is {doing} (it holds {path}); wait for it or end it") from None
            say(f"another process is {doing}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
