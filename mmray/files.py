"""Files that are either whole or absent: written aside, then renamed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
        aside.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole. Not a number is an error: no reader but Python's takes it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def publish_folder(aside: Path, final: Path) -> None:
    """Make the finished folder `aside` appear as `final` in one step; where `final` exists already, it is kept."""
    try:
        aside.rename(final)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(aside, ignore_errors=True)
