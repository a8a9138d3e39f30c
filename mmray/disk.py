"""A full disk, told so that one can do something about it."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmray.storage import is_remote


@contextmanager
def room_for(folder: Path, num_bytes: int, what: str) -> Iterator[None]:
    """Within it `what`, of about `num_bytes`, is written into `folder`, and removed again where that fails.

    OSError (ENOSPC) that says how much is missing, where the disk has no room for it.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise full(folder, num_bytes, what) from error


def is_full(error: BaseException) -> bool:
    """Whether an error, also one of a library that writes files its own way, is that of a full disk or quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"os error {errno.ENOSPC}" in str(error) or "No space left on device" in str(error)


def full(folder: Path, num_bytes: int, what: str) -> OSError:
    """The error of a full disk, on which `what`, of about `num_bytes`, should have gone into `folder`."""
    where = Path(tempfile.gettempdir()) if is_remote(folder) else folder  # what goes to a store is written here first
    free = shutil.disk_usage(where).free
    missing = max(0, num_bytes - free)
    return OSError(
        errno.ENOSPC,
        f"the disk of {where} is full: {what} takes about {_mb(num_bytes)}, {_mb(free)} are free"
        + (f", {_mb(missing)} are missing" if missing else "")
        + ". Nothing half-written is left; make room and give the same command again: it goes on from what is whole",
    )


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MB"
