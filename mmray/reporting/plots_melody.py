"""The picture of one clip's melody: the feature map, the reference, the estimate, and where they disagree."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mmray.reporting.plots import PALETTE, new_figure

# Of an estimate's frames: which kind of error, and its colour. Greys are left to the map.
ERROR_COLORS = {"wrong pitch": PALETTE[1], "missed": PALETTE[3], "false alarm": PALETTE[4]}
RIGHT_COLOR, REFERENCE_COLOR = PALETTE[0], PALETTE[2]
TOLERANCE_CENTS = 50.0


def frame_errors(f0_hz: np.ndarray, ref_f0_hz: np.ndarray) -> dict[str, np.ndarray]:
    """Which frames of an estimate are wrong, and how: boolean (T,) each, by the keys of `ERROR_COLORS`.

    `f0_hz`, `ref_f0_hz`: (T,) Hz on the same frames, unvoiced where not above 0. As mir_eval counts: a pitch is wrong
    from 50 cents off; missed is a voiced reference without an estimate, a false alarm an estimate without reference.
    """
    voiced, ref_voiced = f0_hz > 0, ref_f0_hz > 0
    both = voiced & ref_voiced
    cents = np.zeros(len(f0_hz))
    cents[both] = 1200 * np.abs(np.log2(f0_hz[both].astype(np.float64) / ref_f0_hz[both]))
    return {
        "wrong pitch": both & (cents >= TOLERANCE_CENTS),
        "missed": ref_voiced & ~voiced,
        "false alarm": voiced & ~ref_voiced,
    }


def contour_over_cfp(
    values: np.ndarray,
    frequencies_hz: np.ndarray,
    times_s: np.ndarray,
    hop_s: float,
    f0_hz: np.ndarray,
    ref_f0_hz: np.ndarray | None,
) -> Figure:
    """An estimated melody over the map that it was read from, with the reference and, below, each wrong frame.

    `values`: (T, F), one channel of the map, drawn the darker the larger; `frequencies_hz`: (F,) centres of its rows,
    at equal ratios; `times_s`: (T,) centres of its frames, `hop_s` apart; `f0_hz` and `ref_f0_hz`: (T,) Hz on these
    frames, unvoiced where not above 0, the reference None where there is none. The reference is a band as wide as the
    tolerance, 50 cents to both sides: an estimate within it is right. Each kind of error has a colour and a row of the
    strip, with its share of all frames. ValueError if there is no frame.
    """
    if len(times_s) == 0 or len(frequencies_hz) == 0:
        raise ValueError(f"a map of {len(times_s)} frames by {len(frequencies_hz)} rows can't be drawn")
    figure, axes = new_figure(5.4, 3.6, (5, 1)) if ref_f0_hz is not None else new_figure(5.4, 3.1)
    upper = axes[0]
    ratio = frequencies_hz[1] / frequencies_hz[0] if len(frequencies_hz) > 1 else 2 ** (1 / 12)
    upper.pcolormesh(
        np.append(times_s - hop_s / 2, times_s[-1] + hop_s / 2),
        np.append(frequencies_hz, frequencies_hz[-1] * ratio) / np.sqrt(ratio),
        np.asarray(values, np.float32).T,
        cmap="gray_r",
        vmin=0,
        vmax=1.25 * _largest(values),  # the darkest stays lighter than black, for the lines to stand out
        rasterized=True,
    )
    upper.set_yscale("log", base=2)
    upper.set_ylim(frequencies_hz[0] / np.sqrt(ratio), frequencies_hz[-1] * np.sqrt(ratio))
    upper.yaxis.set_major_locator(LogLocator(base=2, subs=(25 / 16,)))  # 50, 100, 200, 400, 800 Hz
    upper.yaxis.set_major_formatter(FuncFormatter(lambda hz, _: f"{hz:,.0f}"))
    upper.yaxis.set_minor_locator(NullLocator())
    upper.set_ylabel("frequency (Hz)")
    upper.grid(visible=False)
    entries: list[tuple[str, Line2D | Patch]] = [("estimate", Line2D([], [], color=RIGHT_COLOR, linewidth=1.8))]
    if ref_f0_hz is None:
        _draw_frames(upper, times_s, hop_s, f0_hz, RIGHT_COLOR)
    else:
        entries.insert(0, ("reference ± 50 cents", Patch(facecolor=REFERENCE_COLOR, alpha=0.45)))
        _draw_band(upper, times_s, hop_s, ref_f0_hz)
        errors = frame_errors(f0_hz, ref_f0_hz)
        wrong = np.logical_or.reduce(list(errors.values()))
        _draw_frames(upper, times_s, hop_s, np.where(wrong, 0, f0_hz), RIGHT_COLOR)
        for name in ("wrong pitch", "false alarm"):
            _draw_frames(upper, times_s, hop_s, np.where(errors[name], f0_hz, 0), ERROR_COLORS[name])
        _draw_strip(axes[1], times_s, hop_s, errors)
        axes[1].sharex(upper)
        upper.tick_params(labelbottom=False)
    axes[-1].set_xlabel("time (s)")
    upper.set_xlim(times_s[0] - hop_s / 2, times_s[-1] + hop_s / 2)
    figure.legend(
        [handle for _, handle in entries],
        [label for label, _ in entries],
        loc="outside upper left",
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    return figure


def _largest(values: np.ndarray) -> float:
    """The largest finite value above 0, or 1."""
    return float(np.max(values, where=np.isfinite(values), initial=0, axis=None)) or 1.0


def _draw_frames(axes: Axes, times_s: np.ndarray, hop_s: float, f0_hz: np.ndarray, color: str) -> None:
    """Each voiced frame as a dash as long as the frame: a single one is seen, and nothing joins what does not join."""
    voiced = f0_hz > 0
    start_s = times_s[voiced] - hop_s / 2
    axes.hlines(f0_hz[voiced], start_s, start_s + hop_s, colors=color, linewidth=1.8)


def _draw_band(axes: Axes, times_s: np.ndarray, hop_s: float, f0_hz: np.ndarray) -> None:
    """Each voiced frame as a box as wide as the frame and as high as the tolerance."""
    voiced = f0_hz > 0
    left, f0 = times_s[voiced] - hop_s / 2, f0_hz[voiced].astype(np.float64)
    right, factor = left + hop_s, 2 ** (TOLERANCE_CENTS / 1200)
    low, high = f0 / factor, f0 * factor
    corners = [(left, low), (right, low), (right, high), (left, high)]
    boxes = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    axes.add_collection(PolyCollection(list(boxes), facecolor=REFERENCE_COLOR, alpha=0.45, linewidth=0), autolim=False)


def _draw_strip(axes: Axes, times_s: np.ndarray, hop_s: float, errors: dict[str, np.ndarray]) -> None:
    """One row for each kind of error, a bar for each frame of it; the row's name has its share of all frames."""
    for row, (name, wrong) in enumerate(errors.items()):
        frames = [(float(time) - hop_s / 2, hop_s) for time in times_s[wrong]]
        axes.broken_barh(frames, (row - 0.4, 0.8), facecolors=ERROR_COLORS[name], linewidth=0)
    axes.set_yticks(range(len(errors)), [f"{name} {wrong.mean():.1%}" for name, wrong in errors.items()], fontsize=7)
    axes.set_ylim(len(errors) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
