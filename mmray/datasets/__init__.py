"""Corpora: files in, Arrow rows out. One corpus a module; the module's name is its name in a run file.

Every module here offers

- `Config`: a pydantic model (unknown keys rejected) whose `name` is the module's name;
- `sources(config) -> list[Source]`: the pieces of work, in a stable order; ValueError when there is none;
- `columns(config) -> list[Column]`: what a row has;
- `class_names(config) -> list[str]`: the label vocabulary, index = label;
- `read(config, source, reject) -> Iterator[pa.RecordBatch]`: the rows of one source, a bounded batch at a time. Each
  input it can't use goes to `reject`, which raises when the run says `on_bad_input: fail`;
- `GROUP_KEY`: the column whose rows must never stand in two splits;
- `Config.why_corpus_split`, where rows are made for a split: the reason, or None, why no other split than the
  corpus's own will do;
- `LABEL_KEY`: the list column that is empty in rows without a label;
- `SUMMED`, where sums over a split are of use later: names of columns of fixed shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Source:
    """One piece of work of `prepare`: a file (or a part of one) and the split its place in the corpus implies.

    `split` is None where the corpus itself has no splits. `companions` are other files that its rows depend on, such as
    labels: where one of them changes, the corpus has changed. `note` is what the module itself must know to read this
    piece of a file, such as which span of it.
    """

    path: str
    split: str | None
    num_bytes: int
    companions: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Rejected:
    """One input that gave no row: where it stands and why. `offset` is in bytes, `record` counts from 0."""

    path: str
    reason: str
    offset: int | None = None
    record: int | None = None

    def __str__(self) -> str:
        place = self.path
        if self.record is not None:
            place += f", record {self.record}"
        if self.offset is not None:
            place += f", byte {self.offset}"
        return f"{place}: {self.reason}"

    def as_dict(self) -> dict[str, str | int | None]:
        """The fields as plain values, for JSON."""
        return asdict(self)


Reject = Callable[[Rejected], None]
