"""What tests of masks share."""

from __future__ import annotations

from collections.abc import Iterable


def longest_run(flags: Iterable[bool]) -> int:
    """The most True in a row."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
