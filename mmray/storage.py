"""One idiom for paths of this machine and addresses in a store: `at("runs") / name`, `at("s3://bucket/runs") / name`.

A path of this machine is a plain `pathlib.Path`, which pays nothing. An address is a `RemotePath`, which names, joins,
lists and reads as a `Path` does. `s3://` and `gs://` go through pyarrow's own file systems, which need no further
package; any other address, such as `hf://` or `memory://`, goes through fsspec and the package that it names.

What a store does not have, a `RemotePath` does not pretend to: nothing is renamed or appended to, and an object is
written by one upload, so that it is whole or absent. `mmray.files` makes of this what the rest of the code relies on.

A store that stumbles is asked again: see `mmray.stores`. An address with a password in it is refused.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import glob
import hashlib
import io
import itertools
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

from mmray.stores import steadily, store_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pa_fs
    import pyarrow.parquet as pq

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://?(?=[^/])")
_READ_BYTES = 4 << 20  # read at once where a file is read from its begin on


def at(path: str | os.PathLike[str]) -> Path:
    """The path of this machine, or the address in a store, that `path` names.

    An address is not a `pathlib.Path`; it is typed as one because it does what this code does with paths. ValueError
    for an address that holds a password, or `..`.
    """
    if isinstance(path, Path | RemotePath):
        return cast(Path, path)
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    check_address(text)
    scheme, _, rest = text.partition("://")
    return Path(rest) if scheme == "file" else cast(Path, RemotePath(text))


def check_address(text: str) -> None:
    """ValueError where `text` is an address that holds a password, or names no place."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return
    if "@" in rest.partition("/")[0]:
        raise ValueError(
            f"{scheme}://...@{rest.rpartition('@')[2]}: an address must not hold a name or password, which would "
            f"stand in logs and reports; leave them out and set them in the environment: see docs/storage.md"
        )
    if ".." in rest.split("/"):
        raise ValueError(f"{text}: '..' has no meaning in a store; write the address out")
    if not rest.strip("/"):
        raise ValueError(f"{text}: no place in the store; write {scheme}://BUCKET/...")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is in a store, not on this machine."""
    return isinstance(path, RemotePath) or (isinstance(path, str) and "://" in path and not path.startswith("file://"))


@dataclass(frozen=True)
class Status:
    """What a listing tells, under the names of `os.stat_result`.

    `st_mtime_ns` is when the object was written; in a store that keeps no times, a number that tells versions apart.
    """

    st_size: int
    st_mtime_ns: int
    is_dir: bool = False


class RemotePath(PurePosixPath):
    """An address in a store, with the methods of `pathlib.Path` that need no more than a store has.

    What a listing (`glob`, `rglob`, `iterdir`) has found is remembered by the paths that it gave, as `os.DirEntry`
    does; a path made in any other way asks the store each time.
    """

    __slots__ = ("_listed",)

    def __str__(self) -> str:
        text = super().__str__()
        found = _ADDRESS.match(text)
        return f"{found[1]}://{text[found.end() :]}" if found else text

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is not on this machine: this must not happen, please report it")

    def is_absolute(self) -> bool:
        """Whether it has its store; what `relative_to` gives has not."""
        return bool(_ADDRESS.match(str(self)))

    def absolute(self) -> RemotePath:
        """Itself: it depends on no working folder."""
        return self

    resolve = absolute

    # What is there

    def stat(self) -> Status:
        """Size and version; FileNotFoundError where there is nothing."""
        status = self._status()
        if status is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", str(self))
        return status

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self._status(afresh=True) is not None

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        status = self._status()
        return status is not None and not status.is_dir

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        status = self._status()
        return status is not None and status.is_dir

    def iterdir(self) -> Iterator[RemotePath]:
        """What is directly below it."""
        return iter(_listing(self, recursive=False))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """All that matches below it, sorted."""
        parts = PurePosixPath(pattern).parts
        fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
        rest = parts[len(fixed) :]
        if not rest:
            found = self.joinpath(*fixed)
            return iter([found] if found.exists() else [])
        base = self.joinpath(*fixed)
        depth, listed = len(base.parts), _listing(base, recursive=len(rest) > 1 or rest[0] == "**")
        return iter(path for path in listed if _fits(path.parts[depth:], rest))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """All that matches anywhere below it, sorted."""
        return self.glob(f"**/{pattern}")

    def _status(self, afresh: bool = False) -> Status | None:
        known: Status | None = getattr(self, "_listed", None)
        if known is not None and not afresh:
            return known
        return steadily(str(self), lambda: _ask(self))

    # Reading

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open it to read; what is read is asked of the store in ranges, each of them tried again if need be."""
        if mode not in ("r", "rt", "rb"):
            raise ValueError(f"{self}: an object can't be opened to be written bit by bit; use mmray.files")
        file = io.BufferedReader(_Ranges(self), _READ_BYTES)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """All of it."""

        def read() -> bytes:
            filesystem, key = store_of(str(self))
            with filesystem.open_input_file(key) as file:  # a stream would ask for each few KB by themselves
                return bytes(file.read_at(file.size(), 0))

        return steadily(str(self), read)

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """All of it, as text; UTF-8 unless said otherwise."""

        def read() -> bytes:
            data, now = self.read_bytes(), _ask(self)
            if now is not None and now.st_size != len(data):  # reports and logs are written anew while others read them
                raise ConnectionError(errno.EIO, "it was replaced while it was read", str(self))
            return data

        with io.TextIOWrapper(io.BytesIO(steadily(str(self), read)), encoding or "utf-8", errors) as file:
            return file.read()

    def download(self, to: Path) -> None:
        """Write all of it into the local file `to`."""

        def fetch() -> None:
            filesystem, key = store_of(str(self))
            with filesystem.open_input_file(key) as source, to.open("wb") as target:
                size = source.size()
                shutil.copyfileobj(source, target, 4 * _READ_BYTES)
                if target.tell() != size:
                    raise ConnectionError(errno.EIO, f"{target.tell():,} of {size:,} bytes came", str(self))

        steadily(str(self), fetch)

    # Writing

    def upload(self, source: Path) -> None:
        """Make it the bytes of the local file `source`, by one upload: it appears whole, in place of what was there."""
        import pyarrow as pa

        def send() -> None:
            with pa.memory_map(str(source)) as file:
                self._put(file.read_buffer())

        if source.stat().st_size:
            steadily(str(self), send)
        else:
            self.write_bytes(b"")  # nothing can't be mapped

    def copy(self, target: RemotePath) -> None:
        """Make `target`, in the same store, the same bytes; they stay in the store."""

        def copy() -> None:
            filesystem, key = store_of(str(self))
            filesystem.copy_file(key, store_of(str(target))[1])

        steadily(str(target), copy)

    def write_bytes(self, data: bytes) -> int:
        """Make it these bytes, by one upload."""
        steadily(str(self), lambda: self._put(data))
        return len(data)

    def write_text(self, text: str, encoding: str | None = None) -> int:
        """Make it this text, by one upload."""
        return self.write_bytes(text.encode(encoding or "utf-8"))

    def _put(self, data: bytes | pa.Buffer) -> None:
        filesystem, key = store_of(str(self))
        # Not by `with`, which would end the upload, and publish a part of it, also on an error. For the same reason
        # pyarrow's `allow_delayed_open` stays off: a stream that could not begin puts an empty object as it is deleted.
        stream = filesystem.open_output_stream(key)
        stream.write(data)
        stream.close()

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""

        tries = itertools.count(1)

        def delete() -> None:
            filesystem, key = store_of(str(self))
            is_first = next(tries) == 1
            try:
                filesystem.delete_file(key)
            except FileNotFoundError:
                if is_first and not missing_ok:  # else deleted by a try whose answer was lost
                    raise

        steadily(str(self), delete)

    def delete_below(self) -> None:
        """Delete all objects below it."""

        def delete() -> None:
            filesystem, key = store_of(str(self))
            if _ask(self) is not None:
                filesystem.delete_dir(key)

        steadily(str(self), delete)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders of a store are made of the names in it."""

    def chmod(self, mode: int) -> None:
        """Do nothing: who may read is the store's to say."""


# ---- For both kinds of paths


def matching(pattern: str) -> list[Path]:
    """The paths that a pattern with `*`, `?`, `[` or `**` names, sorted."""
    if not is_remote(pattern):
        return sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    beginning = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    return sorted(at(beginning).glob(pattern[len(beginning) :].lstrip("/")))


def files_below(root: Path) -> Iterator[Path]:
    """Every file below a folder, links to nothing among them; hidden files and folders are passed over."""
    if is_remote(root):
        depth = len(root.parts)
        for path in root.rglob("*"):
            if path.is_file() and not any(name[0] == "." for name in path.parts[depth:]):
                yield path
        return
    for folder, below, names in os.walk(root, followlinks=True):
        below[:] = [name for name in below if name[0] != "."]
        yield from (Path(folder, name) for name in names if name[0] != ".")


def statuses(paths: Iterable[str]) -> dict[str, os.stat_result | Status]:
    """The status of each path, by path; of a store one listing a folder is asked for, not each object by itself."""
    found: dict[str, os.stat_result | Status] = {}
    folders: dict[RemotePath, list[str]] = {}
    for text in dict.fromkeys(paths):
        path = at(text)
        if is_remote(path):
            folders.setdefault(cast(RemotePath, path.parent), []).append(text)
        else:
            found[text] = path.stat()
    for folder, texts in folders.items():
        if len(texts) == 1 or len(folder.parts) < 2:
            found |= {text: at(text).stat() for text in texts}
            continue
        listed = {str(path): path for path in folder.iterdir()}
        found |= {text: listed.get(str(at(text)), at(text)).stat() for text in texts}
    return found


@contextmanager
def fetched(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file of this machine with the content of `path`: itself, or a copy that is removed again.

    Within another `fetched` of the same path it is the same copy.
    """
    path = at(path)
    if not is_remote(path):
        yield path
        return
    with _lending:
        copy = _lent.setdefault(path, _Copy(path))
        copy.users += 1
    try:
        yield copy.file()
    finally:
        with _lending:
            copy.users -= 1
            if not copy.users:
                del _lent[path]
                copy.remove()


class _Copy:
    """A temporary copy of an object, fetched by the first who asks for it."""

    def __init__(self, path: Path) -> None:
        self.users = 0
        self._path, self._lock, self._folder = path, threading.Lock(), ""

    def file(self) -> Path:
        with self._lock:
            if not self._folder:
                self._folder = tempfile.mkdtemp(prefix="mmray-")
                cast(RemotePath, self._path).download(Path(self._folder, self._path.name))
        return Path(self._folder, self._path.name)

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


_lent: dict[Path, _Copy] = {}
_lending = threading.Lock()


def on_this_node(path: Path) -> Path:
    """`path` itself, or a copy of that object or folder that stays on this machine, for what must be memory-mapped.

    Copies lie in `MMRAY_CACHE`, by default `mmray` in the user's cache folder, and are fetched once by any process.
    """
    if not is_remote(path):
        return path
    status = path.stat()
    files = [path] if not getattr(status, "is_dir", False) else [p for p in path.rglob("*") if p.is_file()]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    root = Path(os.environ.get("MMRAY_CACHE", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "mmray"))).expanduser()
    copy = root / hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()[:24] / path.name
    if not copy.exists():
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=root, prefix=".writing-"))
        try:
            for file in files:
                target = aside / path.name / file.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                cast(RemotePath, file).download(target)
            aside.rename(copy.parent)
        except OSError:
            if not copy.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return copy


def open_parquet(path: str | os.PathLike[str], memory_map: bool = False) -> pq.ParquetFile:
    """A Parquet file to read: of a store only the row groups that are asked for, each by few requests.

    `memory_map` is of a local file. Read from it within `steadily`.
    """
    import pyarrow.parquet as pq

    path = at(path)
    if not is_remote(path):
        return pq.ParquetFile(path, memory_map=memory_map)

    def opened() -> pq.ParquetFile:
        filesystem, key = store_of(str(path))
        return pq.ParquetFile(filesystem.open_input_file(key), pre_buffer=True)

    return steadily(str(path), opened)


def read_table(path: str | os.PathLike[str]) -> pa.Table:
    """A whole Parquet file."""
    file = open_parquet(path)
    return steadily(str(path), file.read)


def record_batches(path: str | os.PathLike[str], batch_rows: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file, so many rows at a time."""
    file = open_parquet(path)
    if not is_remote(path):
        yield from file.iter_batches(batch_rows, columns=columns)
        return
    for group in range(file.num_row_groups):
        table = steadily(str(path), functools.partial(file.read_row_group, group, columns=columns))
        yield from table.to_batches(batch_rows)


# ---- Asking a store


def _ask(path: RemotePath) -> Status | None:
    """What is at an address, by one request, or two where there is no object of this name."""
    import pyarrow.fs as pa_fs

    filesystem, key = store_of(str(path))
    info = filesystem.get_file_info(key)
    return None if info.type == pa_fs.FileType.NotFound else _status_of(filesystem, info)


def _status_of(filesystem: pa_fs.FileSystem, info: pa_fs.FileInfo) -> Status:
    import pyarrow.fs as pa_fs

    if info.type == pa_fs.FileType.Directory:
        return Status(0, 0, is_dir=True)
    version = info.mtime_ns
    if version is None:  # fsspec's own key of a version, where it has no time
        version = int(hashlib.sha256(filesystem.handler.fs.ukey(info.path).encode()).hexdigest()[:15], 16)
    return Status(info.size, version)


def _listing(path: RemotePath, recursive: bool) -> list[RemotePath]:
    """What is below an address, sorted; nothing where nothing is there."""
    import pyarrow.fs as pa_fs

    def ask() -> list[RemotePath]:
        filesystem, key = store_of(str(path))
        found = []
        base = key.rstrip("/")
        for info in filesystem.get_file_info(pa_fs.FileSelector(key, allow_not_found=True, recursive=recursive)):
            below = info.path.rstrip("/")[len(base) :].lstrip("/")
            if below:
                one = path / below
                try:
                    one._listed = _status_of(filesystem, info)
                except FileNotFoundError:  # deleted since it was listed, in a store asked for each object's version
                    continue
                found.append(one)
        return sorted(found)

    return steadily(str(path), ask)


def _fits(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether the names of a path below some folder are as the parts of a pattern say."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


class _Ranges(io.RawIOBase):
    """An object, read by ranges."""

    def __init__(self, path: RemotePath) -> None:
        filesystem, key = store_of(str(path))
        self._name, self._at = str(path), 0
        self._file = steadily(self._name, lambda: filesystem.open_input_file(key))
        self._size: int = self._file.size()

    @property
    def name(self) -> str:
        return self._name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._at))
        if not wanted:
            return 0
        data = steadily(self._name, lambda: self._file.read_at(wanted, self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
