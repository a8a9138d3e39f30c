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

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
