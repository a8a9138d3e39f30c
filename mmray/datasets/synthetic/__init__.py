"""Made-up corpora in the real corpora's own formats. One corpus a module; its name is that of the corpus it imitates.

Every module here offers

- `Config`: a pydantic model (unknown keys rejected) whose `name` is the module's name;
- `generate(out, config, progress) -> Summary`: writes the corpus into the folder `out`, in pieces that depend on
  nothing but the configuration, so that the same configuration gives the same bytes at any number of processes.
  A run that was stopped goes on where it stood. ValueError where `out` holds something else.

What is written is read by the dataset module of the same name, as the real corpus is: no reader knows of this
package.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from mmray.files import write_text

C = TypeVar("C", bound=BaseModel)
P = TypeVar("P")

Progress = Callable[[int, int], None]
"""Called as `progress(done, total)` after each piece of work: so many of so many."""


@dataclass(frozen=True)
class Summary:
    """What `generate` left in `out`: items (videos, clips, images), files and their bytes."""

    out: Path
    num_items: int
    num_files: int
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.out}: {self.num_items:,} items in {self.num_files:,} files, {self.num_bytes / 1e6:,.1f} MB"


def write_pieces(
    out: Path,
    config: C,
    plan: Sequence[P],
    files_of: Callable[[P], tuple[Path, ...]],
    write: Callable[[C, P, Path], None],
    progress: Progress,
    num_processes: int,
) -> list[Path]:
    """Write every piece of `plan` whose files are not all there; return the files of the corpus, its settings first.

    `write(config, piece, out)` is a function of a module, which other processes import; its files are whole or absent.
    Raises ValueError when `out` holds anything but a run, whole or not, of the same configuration.
    """
    settings = out / "synthetic.json"
    wanted = config.model_dump_json(indent=2) + "\n"
    if settings.exists():
        if settings.read_text() != wanted:
            raise ValueError(f"{out} holds a corpus of other settings, see {settings}; give another folder")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and is no made-up corpus ({settings.name} is missing); give a new folder")
    write_text(settings, wanted)

    missing = [piece for piece in plan if not all(file.exists() for file in files_of(piece))]
    with (
        ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) if num_processes > 1 else nullcontext()
    ) as pool:
        run = pool.map if pool else map
        written = run(write, itertools.repeat(config), missing, itertools.repeat(out))
        for done, _ in enumerate(written, len(plan) - len(missing) + 1):
            progress(done, len(plan))
    return [settings, *itertools.chain.from_iterable(map(files_of, plan))]


def summary(out: Path, num_items: int, files: Sequence[Path]) -> Summary:
    """The summary of a corpus of these files."""
    return Summary(out, num_items, len(files), sum(file.stat().st_size for file in files))
