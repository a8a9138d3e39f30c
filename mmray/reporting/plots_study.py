"""The pictures of a search: plain arrays in, a matplotlib Figure out. See `mmray.reporting.plots` for the style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmray.reporting.plots import DPI, GREY, PALETTE, _plain, new_figure

BEST = "#D55E00"
_MAP = "viridis"  # from dark, worse, to bright, better
_SLICE_COLUMNS = 3


@dataclass(frozen=True)
class Axis:
    """One parameter: `values`, shape (N,), of each trial, NaN where it has none; of a choice, places in `choices`."""

    name: str
    values: np.ndarray
    log: bool = False
    choices: Sequence[str] | None = None


def history(values: np.ndarray, finished: np.ndarray, maximise: bool, label: str) -> Figure:
    """The objective of each trial, and the best of the finished ones so far.

    `values`, shape (N,): by number, NaN where there is none; `finished`, shape (N,) bool: false for those that were
    stopped early, whose last value stands as a ring.
    """
    figure, (axes,) = new_figure(5.0, 3.2)
    numbers = np.arange(len(values))
    axes.scatter(numbers[finished], values[finished], s=16, color=PALETTE[0], zorder=3)
    axes.scatter(numbers[~finished], values[~finished], s=14, facecolors="none", edgecolors=GREY, linewidths=0.9)
    known = np.where(finished & np.isfinite(values), values, -np.inf if maximise else np.inf)
    best = (np.maximum if maximise else np.minimum).accumulate(known) if len(known) else known
    axes.step(numbers, np.where(np.isfinite(best), best, np.nan), where="post", color=BEST, linewidth=1.6)
    axes.set_xlabel("trial")
    axes.set_ylabel(_plain(label))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return figure


def trial_curves(curves: Sequence[tuple[np.ndarray, np.ndarray, bool]], best: int | None, label: str) -> Figure:
    """The objective of each trial over its epochs: `(epochs, values, whether it was trained to the end)` each.

    The place of the best trial among them is `best`.
    """
    figure, (axes,) = new_figure(5.0, 3.2)
    for place, (epochs, values, finished) in enumerate(curves):
        is_best = place == best
        axes.plot(
            epochs,
            values,
            color=BEST if is_best else PALETTE[0] if finished else GREY,
            linewidth=1.8 if is_best else 0.9,
            alpha=1.0 if is_best else 0.7,
            marker="o" if len(epochs) == 1 else "",
            markersize=2.5,
            zorder=4 if is_best else 3 if finished else 2,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel(_plain(label))
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return figure


def importances(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """For each objective, which share of its variation each parameter explains, the largest on top."""
    first = next(iter(shares.values()))
    names = sorted({name for of_one in shares.values() for name in of_one}, key=lambda name: first.get(name, 0.0))
    figure, (axes,) = new_figure(5.0, 0.9 + 0.3 * len(names) * max(1, 0.7 * len(shares)))
    height = 0.8 / len(shares)
    for place, (objective, of_one) in enumerate(shares.items()):
        at = np.arange(len(names)) + 0.4 - height * (place + 0.5)
        axes.barh(at, [of_one.get(name, 0.0) for name in names], height, color=PALETTE[place], label=_plain(objective))
    axes.set_yticks(np.arange(len(names)), [_plain(name, 36) for name in names])
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance")
    axes.grid(visible=False, axis="y")
    if len(shares) > 1:
        figure.legend(loc="outside upper left", ncols=2, fontsize=8, frameon=False)
    return figure


def parallel_coordinates(params: Sequence[Axis], values: np.ndarray, maximise: bool, label: str) -> Figure:
    """A line a trial through its parameters to its objective, shape (N,): the brighter, the better; the best on top.

    A line passes by a parameter that its trial does not have.
    """
    axes_of = [*params, Axis(label, values)]
    figure, (axes,) = new_figure(max(5.0, 1.3 * len(axes_of) + 1.2), 3.4)
    heights = np.stack([_height(axis) for axis in axes_of], axis=1)
    order = np.argsort(values if maximise else -values)
    norm = Normalize(*_finite_ends(values))
    shade = ScalarMappable(norm, _MAP if maximise else f"{_MAP}_r")
    places = np.arange(len(axes_of))
    for trial in order:
        if not math.isfinite(values[trial]):
            continue
        there = np.isfinite(heights[trial])
        axes.plot(places[there], heights[trial][there], color=shade.to_rgba(values[trial]), linewidth=1.2, alpha=0.85)
    for place, axis in enumerate(axes_of):
        axes.axvline(place, color="#999999", linewidth=0.8, zorder=0)
        for height, text in _ends(axis):
            axes.annotate(text, (place, height), (3, 0), textcoords="offset points", fontsize=7, va="center")
    axes.set_xlim(-0.1, len(axes_of) - 0.5)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xticks(places, [_plain(axis.name, 22) for axis in axes_of], rotation=20, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    return figure


def slices(params: Sequence[Axis], values: np.ndarray, label: str) -> Figure:
    """The objective, shape (N,), over each parameter by itself; trials early are dark, late ones bright."""
    columns = min(_SLICE_COLUMNS, len(params))
    rows = math.ceil(len(params) / columns)
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.4 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    numbers = np.arange(len(values))
    for place, axes in enumerate(grid.flat):
        if place >= len(params):
            axes.set_visible(False)
            continue
        axis = params[place]
        axes.scatter(axis.values, values, c=numbers, cmap=_MAP, s=14)
        _style(axes)
        axes.set_xlabel(_plain(axis.name, 34), fontsize=8)
        if axis.choices is not None:
            axes.set_xticks(range(len(axis.choices)), [_plain(choice, 12) for choice in axis.choices])
            axes.margins(x=0.15)
        elif axis.log:
            axes.set_xscale("log")
    for axes in grid[:, 0]:
        axes.set_ylabel(_plain(label, 24), fontsize=8)
    return figure


def pareto(x: Axis, y: Axis, on_front: np.ndarray, maximise: tuple[bool, bool]) -> Figure:
    """Two objectives of each trial, and the front: those that no other beats in both."""
    figure, (axes,) = new_figure(5.0, 3.4)
    axes.scatter(x.values[~on_front], y.values[~on_front], s=14, color=GREY)
    order = np.argsort(x.values[on_front])
    # Between two of the front nothing is known to be better than the worse of each: steps, not slopes.
    where: Literal["pre", "post"] = "post" if maximise[0] != maximise[1] else "pre"
    axes.step(x.values[on_front][order], y.values[on_front][order], where=where, color=BEST, linewidth=1.2, zorder=2)
    axes.scatter(x.values[on_front], y.values[on_front], s=22, color=BEST, zorder=3)
    for axis, up, set_label in ((x, maximise[0], axes.set_xlabel), (y, maximise[1], axes.set_ylabel)):
        set_label(f"{_plain(axis.name)} ({'higher' if up else 'lower'} is better)")
    if x.log:
        axes.set_xscale("log")
    return figure


def _height(axis: Axis) -> np.ndarray:
    """Where each value stands on an upright axis from 0 to 1."""
    values = np.log(axis.values) if axis.log else axis.values
    low, high = (0.0, len(axis.choices) - 1.0) if axis.choices is not None else _finite_ends(values)
    heights: np.ndarray = np.full(len(values), 0.5) + 0 * values if high <= low else (values - low) / (high - low)
    return heights


def _ends(axis: Axis) -> list[tuple[float, str]]:
    if axis.choices is not None:
        last = max(1, len(axis.choices) - 1)
        alone = len(axis.choices) == 1
        return [(0.5 if alone else place / last, _plain(choice, 12)) for place, choice in enumerate(axis.choices)]
    low, high = _finite_ends(axis.values)
    return [(0.5, f"{low:.3g}")] if high <= low else [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")]


def _finite_ends(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=7, color="#999999", labelcolor="#333333", which="both")
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
