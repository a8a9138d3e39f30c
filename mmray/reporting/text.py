"""How the page writes names, numbers and times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

DISPLAY_NAMES = {
    "gap": "GAP",
    "map": "mAP",
    "hit_at_1": "Hit@1",
    "perr": "PERR",
    "ap": "AP",
    "lr": "learning rate",
    "f1": "F1",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "track_macro_f1": "track macro F1",
    "ece": "ECE",
}


def display_name(metric: str) -> str:
    """A metric's name as people write it: `hit_at_1` -> Hit@1; others with blanks for underscores."""
    return DISPLAY_NAMES.get(metric, metric.replace("_", " "))


def number(value: Any) -> str:
    """A value for people: whole numbers in full, others to 4 decimals, None as a dash.

    Small ones have 4 digits, and what is below 1e-9 is rounding, so 0.
    """
    if value is None or value == "":
        return "—"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4g}" if 1e-9 < abs(value) < 0.001 else f"{value:,.4f}"


def shape(sizes: Sequence[int | None]) -> str:
    """A column's shape for people: `[None, 1024]` -> any x 1,024."""
    return " x ".join("any" if size is None else f"{size:,}" for size in sizes)


def duration(seconds: float) -> str:
    """Seconds for people: 59.5 s, 1 min 46 s, 2 h 05 min."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s" if m else f"{seconds:.1f} s"


def flop(operations: float) -> str:
    """A number of floating-point operations for people: 5.48e9 -> 5.48 GFLOP."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if operations >= scale:
            return f"{operations / scale:,.2f} {prefix}FLOP"
    return f"{operations:,.0f} FLOP"


def is_finite(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def finite_or_nan(value: Any) -> float:
    """A value read from JSON as a number; NaN for what is none, or not finite."""
    return float(value) if is_finite(value) else math.nan
