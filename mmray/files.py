"""Files and folders that are either whole or absent, on this machine and in a store.

On this machine they are written aside and renamed. In a store an object appears by one upload, whole; a folder is
written in its place, and is there for its readers when its notes are: the `*.json` at its top, which are written last
and deleted first. So readers look for a folder's note, never for the folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from mmray.console import say
from mmray.storage import RemotePath, is_remote

CLAIM_S = 60.0  # without a sign of life for so long, who holds a lock in a store is taken for dead
_RENEW_S = 10.0
_UNSEEN_S = 10.0  # between two looks at the claims on a lock: more than that, and the store gave no answer


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path of this machine; on success it becomes `path`, on an error it is removed."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="mmray-") as folder:
            aside = Path(folder, path.name)
            aside.touch()
            yield aside
            cast(RemotePath, path).upload(aside)
        return
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


def begin_folder(final: Path) -> Path:
    """A new folder to write what `publish_folder` shall make appear as `final`; its notes are to be written last.

    It is beside `final`; in a store, where nothing can be renamed, it is `final` itself, and what stood there is gone.
    """
    if is_remote(final):
        delete_folder(final)
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=final.parent, prefix=".writing-"))
    aside.chmod(0o755)
    return aside


@contextmanager
def written_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder of this machine; on success it becomes `final`, on an error it is removed.

    Nobody else may be writing `final`.
    """
    if is_remote(final):
        aside = Path(tempfile.mkdtemp(prefix="mmray-"))
    else:
        aside = final.with_name(f".writing-{final.name}")
        shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
        aside.mkdir(parents=True)
    try:
        yield aside
        publish_folder(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a folder of this machine for files that belong into `folder`: itself, or one that is then uploaded."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mmray-") as here:
        yield Path(here)
        _bring(Path(here), folder)


def publish_folder(aside: Path, final: Path) -> None:
    """Make the finished folder `aside` appear as `final`, in place of one that may stand there."""
    if aside == final:  # in a store, where its notes were written last
        return
    if is_remote(final):
        delete_folder(final)
        _bring(aside, final)
        if is_remote(aside):
            delete_folder(aside)
        return
    if final.exists():
        old = Path(tempfile.mkdtemp(dir=final.parent, prefix=".deleted-"))
        final.rename(old / final.name)
        aside.rename(final)
        shutil.rmtree(old)
    else:
        aside.rename(final)


def delete_folder(folder: Path) -> None:
    """Delete a folder so that a crash leaves either all of it or nothing under its name."""
    if is_remote(folder):
        for path in folder.glob("*.json"):
            path.unlink(missing_ok=True)
        cast(RemotePath, folder).delete_below()
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".deleted-"))
    folder.rename(old / folder.name)
    shutil.rmtree(old)


def delete_leftovers(folder: Path) -> None:
    """Delete what a crash left of writing and deleting folders in `folder`; nobody else may be at work there."""
    if is_remote(folder):  # there such a folder is in its place, and written anew there
        return
    for pattern in (".writing-*", ".deleted-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _bring(folder: Path, final: Path) -> None:
    """Have the files of `folder` below `final`, which is in a store; the notes last."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for file in sorted(files, key=lambda file: file.parent == folder and file.suffix == ".json"):
        target = cast(RemotePath, final / file.relative_to(folder).as_posix())
        if is_remote(file):
            cast(RemotePath, file).copy(target)
        else:
            target.upload(file)


# ---- Who may write


@contextmanager
def locked(path: Path, doing: str, wait: bool) -> Iterator[None]:
    """Hold the lock `path`, against other processes. Where it is held, wait for it, or raise ValueError.

    On this machine it ends with its process. In a store it is an object that its holder writes anew every few seconds:
    who was killed on another machine is out of the way after `CLAIM_S`.
    """
    if is_remote(path):
        with _claimed(path, doing, wait):
            yield
        return
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


@contextmanager
def _claimed(path: Path, doing: str, wait: bool) -> Iterator[None]:
    """Hold a lock in a store by a claim, an object of one's own below `path`.

    A store lists what has been written to it (S3 does since 2020). So of two who write their claims and then list
    them at least one sees the other's: whoever sees another's takes the own one back, and tries again a little later.
    """
    others, told = _Claims(path), False
    while True:
        mine = path / uuid.uuid4().hex
        if not others.living():
            try:
                mine.write_text(_this_process())
                alone = not others.living(but=mine)
            except BaseException:
                mine.unlink(missing_ok=True)  # else it would keep others waiting as long as this process lives
                raise
            if alone:
                break
            mine.unlink(missing_ok=True)
        if not wait and others.renewed:
            raise ValueError(f"another process is {doing} (it holds {others.renewed}); wait for it or end it")
        if not told and others.seen_for_s() > 3:
            say(f"another process is {doing}, or was killed; waiting for it, or {CLAIM_S:.0f} s without a sign of life")
            told = True
        time.sleep(random.uniform(0.2, 1.0))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_S):
            try:
                if not mine.exists():
                    say(f"warning: another process took the lock {path}, which could not be renewed in time; end one")
                    return
                mine.write_text(_this_process())
            except OSError as error:  # the next try may come through in time
                say(f"warning: the lock {path} could not be renewed: {error}")

    thread = threading.Thread(target=renew, name="mmray-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            mine.unlink(missing_ok=True)
        except OSError as error:  # what was done is done; the lock ends by itself
            say(f"warning: the lock {path} could not be given back: {error}")


class _Claims:
    """The claims of others, as they come and go. Whether one lives is told by this process's clock alone."""

    def __init__(self, path: Path) -> None:
        self.renewed: Path | None = None  # one whose holder lives beyond doubt
        self._path = path
        self._seen: dict[str, tuple[int, float]] = {}  # its version, and since when it is of this version
        self._looked = time.monotonic()

    def living(self, but: Path | None = None) -> list[Path]:
        """Those that are there. One whose process is dead, or that was not renewed for `CLAIM_S`, is deleted."""
        claims = {claim.name: claim for claim in self._path.glob("*") if claim != but}
        self._seen = {name: seen for name, seen in self._seen.items() if name in claims}
        found, now = [], time.monotonic()
        if (unseen_s := now - self._looked) > _UNSEEN_S:  # the store gave no answer: to nobody, nor could it be renewed
            self._seen = {name: (version, since + unseen_s) for name, (version, since) in self._seen.items()}
        self._looked = now
        for name, claim in claims.items():
            version, is_new = claim.stat().st_mtime_ns, name not in self._seen
            before, since = self._seen.setdefault(name, (version, now))
            if version != before:
                self._seen[name], self.renewed = (version, now), claim
            elif now - since > CLAIM_S or (is_new and _has_died(claim)):
                claim.unlink(missing_ok=True)
                continue
            found.append(claim)
        return found

    def seen_for_s(self) -> float:
        """For how long the oldest has been as it is."""
        return time.monotonic() - min((since for _, since in self._seen.values()), default=time.monotonic())


def _this_process() -> str:
    """What no other process has: of which kernel, of which of its spaces of process numbers, which number."""
    return "\n".join([*_kernel(), str(os.getpid())])


def _kernel() -> list[str]:
    try:
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        return [uuid.uuid4().hex, ""]  # no Linux: nobody can tell


def _has_died(claim: Path) -> bool:
    """Whether a claim is of a process of this machine that is no more."""
    try:
        *kernel, number = claim.read_text().splitlines()
        if kernel != _kernel():
            return False
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):  # just taken back; or of another user, so alive
        return False
    return False
