"""What the models of words share: rows of any number of words, one row after another, and none padded."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class WordConfig(BaseModel):
    """Hyper-parameters that all of them have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    takes: ClassVar[str] = "words"
    words: ClassVar[Literal["vectors", "numbers"]] = "vectors"
    """What x is: vectors of words, or their numbers."""

    name: str
    inputs: tuple[str, ...] = Field(default=("title_words",), min_length=1)
    """The columns of word numbers that a row's words are taken from, one after the other."""


def require_offsets(x: Tensor, offsets: Tensor) -> None:
    """ValueError where offsets are not (B + 1,) int64 that ascend from 0 to len(x); only seen on the CPU."""
    if offsets.dim() != 1 or len(offsets) < 1 or offsets.is_floating_point():
        raise ValueError(f"offsets is {tuple(offsets.shape)} {offsets.dtype}; it must be (B + 1,) whole numbers")
    if offsets.device.type == "cpu" and (offsets[0] != 0 or offsets[-1] != len(x) or bool((offsets.diff() < 0).any())):
        raise ValueError(f"offsets must ascend from 0 to the {len(x)} words; they are {offsets.tolist()}")


def rows_of(offsets: Tensor) -> Tensor:
    """The row that each word belongs to, (N,) int64."""
    lengths = offsets.diff()
    return lengths.new_tensor(range(len(lengths))).repeat_interleave(lengths)
