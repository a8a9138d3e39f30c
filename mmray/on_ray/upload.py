"""What a job needs of this machine, and nothing else: the package, the run file and the small files that it names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmray
from mmray import config, storage

PACKAGE = Path(mmray.__file__).parent
REQUIREMENTS = PACKAGE.parent / "requirements.txt"
_LISTED = 5
_WRITTEN = ("out", "cache")  # keys of folders that a job writes
_READ = ("path", "vectors", "centroids")  # and of what it reads, beside all that end in _path and _file


@dataclass
class Upload:
    """Files that travel: where each will lie in the job's working folder, and where it is here."""

    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of_package(cls) -> Upload:
        """The package mmray as it is here, edits included, without what is hidden and what Python has compiled."""
        names = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*") if path.is_file())
        wanted = (name for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts))
        return cls({name.as_posix(): PACKAGE.parent / name for name in wanted})

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def said(self) -> str:
        """How much it is."""
        return f"{len(self.files):,} files, {_mb(self.num_bytes)} MB"

    def check(self, limit_mb: float) -> None:
        """ValueError with the largest files where it is more than the limit."""
        if self.num_bytes <= limit_mb * 1e6:
            return
        largest = sorted(self.files, key=lambda name: -self.files[name].stat().st_size)[:_LISTED]
        listed = "\n".join(f"  {_mb(self.files[name].stat().st_size):>8} MB  {name}" for name in largest)
        raise ValueError(
            f"the upload is {self.said()}, more than --limit-mb {limit_mb:g}; the largest are\n{listed}\n"
            f"put what is large on storage that all nodes see and name it there, or raise --limit-mb"
        )

    def add_run(self, path: Path, run: config.Run) -> str:
        """Take a run file and what it names along; return its path in the job's working folder.

        ValueError lists the keys whose relative paths would be lost with that folder.
        """
        lost = []
        for key, value in paths_in(run.to_dict()):
            if storage.is_remote(value) or Path(value).is_absolute():
                continue
            is_written = key.rpartition(".")[2] in _WRITTEN
            if not is_written and Path(value).is_file() and ".." not in Path(value).parts:
                self.files[Path(value).as_posix()] = Path(value)
            else:
                lost.append(f"--set {key}=…/{value}")
        if lost:
            raise ValueError(
                f"{path}: relative paths would lie in the job's working folder, which Ray deletes; name storage that "
                f"all nodes see (s3://…, gs://…, or an absolute path that they share):\n  " + "\n  ".join(lost)
            )
        if storage.is_remote(path):  # the job reads it where it is
            return str(path)
        is_below = not path.is_absolute() and ".." not in path.parts
        name = path.as_posix() if is_below else path.name
        self.files[name] = path
        return name

    def lay_out(self, folder: Path) -> None:
        """Copy the files into `folder`, which is made."""
        folder.mkdir(parents=True)
        for name, path in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def paths_in(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a run that hold paths, with their values."""
    if isinstance(values, dict):
        for name, value in values.items():
            if name != "columns":  # names of columns, one of which is `path`
                yield from paths_in(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from paths_in(value, f"{key}.{number}")
    elif isinstance(values, str) and values:
        name = key.rpartition(".")[2]
        if name in _WRITTEN + _READ or name.endswith(("_path", "_file")):
            yield key, values


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f}"
