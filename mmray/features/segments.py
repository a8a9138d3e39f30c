"""Long recordings as segments of equal length: where they lie, and reading them without what lies between.

Segment i of a recording begins at i * hop_s. All that fit whole are taken. What is left at the end, uncovered by the
last of them, is the tail: one more segment, shorter than the others, or all there is of a short recording. Places are
in samples at the rate that the recording is read at, so no rounding adds up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from mmray.config import Section
from mmray.features import audio


class Settings(Section):
    """How a recording is cut."""

    segment_s: PositiveFloat = Field(30, description="length of a segment")
    hop_s: PositiveFloat = Field(30, description="from the start of a segment to that of the next; less is overlap")
    tail: Literal["keep", "pad", "drop"] = Field(
        "keep", description="the rest of a recording: a shorter segment, one filled up with zeros, or none"
    )
    min_tail_s: NonNegativeFloat = Field(0, description="keep and pad: a rest shorter than this is dropped")

    @model_validator(mode="after")
    def _lengths_are_at_least_a_millisecond(self) -> Self:
        for name in ("segment_s", "hop_s"):
            if getattr(self, name) < 0.001:
                raise ValueError(f"{name}={getattr(self, name):g}: give at least 0.001 seconds")
        return self


def num_samples_at(length: audio.Length, sample_rate_hz: int) -> int:
    """How many samples a file of this length has when it is read at `sample_rate_hz`."""
    return (2 * length.num_samples * sample_rate_hz + length.sample_rate_hz) // (2 * length.sample_rate_hz)


def num_segments(settings: Settings, sample_rate_hz: int, num_samples: int) -> int:
    """How many segments a recording of so many samples gives, its tail included."""
    size, hop = _sizes(settings, sample_rate_hz)
    whole = 0 if num_samples < size else (num_samples - size) // hop + 1
    covered = (whole - 1) * hop + size if whole else 0
    rest = num_samples - max(covered, whole * hop)  # of a hop that is longer than a segment the gap is nobody's
    tail = num_samples - whole * hop
    least = max(1, round(settings.min_tail_s * sample_rate_hz))
    return whole + (settings.tail != "drop" and rest > 0 and tail >= least)


def span(settings: Settings, sample_rate_hz: int, num_samples: int, index: int) -> tuple[int, int]:
    """First sample of a segment and the one after its last, as far as the recording goes."""
    size, hop = _sizes(settings, sample_rate_hz)
    return index * hop, min(index * hop + size, num_samples)


def start_s(settings: Settings, sample_rate_hz: int, index: int) -> float:
    """Where a segment begins, in seconds."""
    return index * _sizes(settings, sample_rate_hz)[1] / sample_rate_hz


def read(
    path: audio.PathLike,
    settings: Settings,
    sample_rate_hz: int,
    num_samples: int,
    indices: Iterable[int],
    mix: audio.Mix = "mean",
) -> Iterator[NDArray[np.float32] | ValueError]:
    """The segments of these numbers, each (n,), or why one can't be read. One is held at a time.

    `num_samples` is the length of the recording at `sample_rate_hz`. A segment is the same whichever others are read.
    """
    size, _ = _sizes(settings, sample_rate_hz)
    for index in indices:
        try:
            start, stop = span(settings, sample_rate_hz, num_samples, index)
            samples = audio.read_span(path, sample_rate_hz, start, stop, mix)
        except ValueError as error:
            yield error
        else:
            yield np.pad(samples, (0, size - len(samples))) if settings.tail == "pad" else samples


def _sizes(settings: Settings, sample_rate_hz: int) -> tuple[int, int]:
    """Segment and hop in samples, at least one each."""
    size, hop = (max(1, round(seconds * sample_rate_hz)) for seconds in (settings.segment_s, settings.hop_s))
    return size, hop
