"""The pictures of a report: plain arrays in, a matplotlib Figure out.

Figures are built without pyplot: Agg draws them, no display is needed and no global state is left behind.
Runs come as a mapping in one fixed order. A run's place in it decides its colour, so a run that has nothing to
show in one picture keeps its place there with empty arrays.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

# Okabe and Ito (2008), colours told apart by every kind of colour vision; its yellow is left out, too pale on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#777777"
DPI = 200
MAX_NAMED_BARS = 40

Points = tuple[np.ndarray, np.ndarray]

# How the three series of one metric differ, since colour is taken by the run.
_SERIES_STYLE: dict[str, tuple[str, dict[str, Any]]] = {
    "step": ("train, step", {"linewidth": 0.9, "alpha": 0.75}),
    "train": ("train, epoch", {"linewidth": 1.3, "linestyle": (0, (4, 2))}),
    "val": ("val", {"linewidth": 1.8}),
}
# Published scores are not ours: an outline, hatched.
_HOLLOW: dict[str, Any] = {"facecolor": "#ffffff", "hatch": "//////"}


def run_color(place: int) -> str:
    """Colour of the run at this place, from 0; the eighth run shares the first's and differs by its marker."""
    return PALETTE[place % len(PALETTE)]


def curves(runs: Mapping[str, Mapping[str, Points]], y_label: str, log_y: bool = False) -> Figure:
    """One quantity over training: colour tells the run, line style the series.

    `runs` maps a run's label to its series, each `(x, y)` of shape (N,), under the keys `step` (a value each logged
    step), `train` and `val` (one an epoch); x is the training step. NaN leaves a gap. With `log_y` the y axis is
    logarithmic if the values are positive and span more than two decades. A series without points is left out.
    """
    figure, (axes,) = new_figure(5.0, 3.2)
    drawn = set()
    finite = np.concatenate([np.zeros(0), *(y[np.isfinite(y)] for s in runs.values() for _, y in s.values())])
    for place, series in enumerate(runs.values()):
        for kind, (_, style) in _SERIES_STYLE.items():
            x, y = series.get(kind, ((), ()))
            if len(x) == 0:
                continue
            drawn.add(kind)
            # Few points are shown as such, a single one would be no line at all; many would hide the line.
            marker = _marker(place) if len(x) <= 30 else ""
            axes.plot(x, y, color=run_color(place), marker=marker, markersize=3.5, **style)
    axes.ticklabel_format(axis="y", useOffset=False)
    if log_y and finite.size and finite.min() > 0 and finite.max() > 100 * finite.min():
        axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel(_plain(y_label))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    kinds = [(name, Line2D([], [], color=GREY, **style)) for k, (name, style) in _SERIES_STYLE.items() if k in drawn]
    _legend(figure, runs, {label for label, s in runs.items() if any(len(x) for x, _ in s.values())}, kinds)
    return figure


def smooth_over_ranks(score: np.ndarray) -> np.ndarray:
    """Mean of `score`, shape (C,), over neighbouring ranks: rank r (from 1) averages r - r//4 ... r + r//4.

    The window grows with the rank, so it is equally wide everywhere on a logarithmic axis; past the last rank it is
    cut off. NaN (no score) counts for nothing; a window in which fewer than half of the labels have a score gives NaN,
    or the last ranks, where few have one, would show the noise of single labels.
    """
    rank = np.arange(1, len(score) + 1)
    first = rank - rank // 4 - 1
    last = np.minimum(rank + rank // 4, len(score))
    known = np.isfinite(score)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, score, 0.0))])
    number = np.concatenate([[0], np.cumsum(known)])
    num_known = number[last] - number[first]
    mean = (total[last] - total[first]) / np.maximum(num_known, 1)
    return np.where((num_known > 0) & (2 * num_known >= last - first), mean, np.nan)


def score_by_rank(runs: Mapping[str, Points], score_label: str) -> Figure:
    """Score per label against the label's rank by frequency, smoothed over neighbouring ranks; frequency below.

    `runs` maps a run's label to `(train_count, score)`, each of shape (C,) in class order; score is NaN where it's not
    defined. Rank 1 is the most frequent label of the run's own training split, ties stand in class order.
    The idea is Figure 5 of the YouTube-8M study with text: which modality serves the head, which the tail.
    """
    figure, (upper, lower) = new_figure(5.6, 4.4, heights=(3, 1))
    seen: list[np.ndarray] = []
    for place, (train_count, score) in enumerate(runs.values()):
        if len(score) == 0:
            continue
        order = np.argsort(-train_count, kind="stable")
        rank = np.arange(1, len(score) + 1)
        upper.plot(
            rank,
            smooth_over_ranks(score[order]),
            color=run_color(place),
            linewidth=1.6,
            marker=_marker(place),
            markersize=3.5,
            markevery=np.unique(np.geomspace(1, len(score), 12).astype(int) - 1).tolist(),
        )
        frequency = train_count[order]
        if any(np.array_equal(frequency, other) for other in seen):
            continue
        # Grey while all runs share one data set, the usual case; a second data set needs its run's colour.
        lower.plot(rank, frequency, color=run_color(place) if seen else GREY, linewidth=1.4)
        seen.append(frequency)
    upper.set_xscale("log")
    upper.set_ylim(0, 1.02)
    upper.set_ylabel(_plain(score_label))
    upper.tick_params(labelbottom=False, which="both")
    lower.sharex(upper)
    lower.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_formatter(EngFormatter(sep=""))
    lower.set_ylabel("training rows")
    lower.set_xlabel("label rank by training frequency (1 = most frequent)")
    _legend(figure, runs, {label for label, (_, score) in runs.items() if len(score)}, [])
    return figure


def label_histogram(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """How unevenly the training rows spread over the labels; `counts`, shape (C,), is non-negative rows per label.

    Up to 40 labels get a bar each, by name, most frequent first. More are binned by doubling: the first bar counts the
    labels without a row, bar k > 0 those with 2^(k-1) ... 2^k - 1 rows.
    """
    if len(counts) <= MAX_NAMED_BARS:
        figure, (axes,) = new_figure(5.0, 0.7 + 0.18 * len(counts))
        order = np.argsort(-counts, kind="stable")
        place = np.arange(len(counts))
        bars = axes.barh(place, counts[order], color=PALETTE[0], height=0.7)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2, color="#444444")
        axes.set_yticks(place, [_plain(class_names[i]) for i in order])
        axes.invert_yaxis()
        axes.set_xlabel("training rows with the label")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.margins(x=0.1)
        axes.grid(visible=False, axis="y")
        return figure
    figure, (axes,) = new_figure(5.0, 3.0)
    # frexp's exponent of a positive integer is its number of binary digits: 1 -> 1, 2..3 -> 2, 4..7 -> 3.
    num_labels = np.bincount(np.frexp(counts.astype(np.float64))[1])
    bars = axes.bar(np.arange(len(num_labels)), num_labels, color=PALETTE[0], width=0.85)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2, color="#444444")
    starts = [0, *(2**k for k in range(len(num_labels) - 1))]
    ticks = [f"{start:,}" for start in starts]
    axes.set_xticks(np.arange(len(starts)), ticks, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlabel("training rows with the label (each bar from its number up to the next)")
    axes.set_ylabel("labels")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.grid(visible=False, axis="x")
    return figure


def metric_bars(
    runs: Mapping[str, Mapping[str, float]],
    published: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, str],
) -> Figure:
    """Scores as bars, grouped by metric: colour tells the run, filled is measured, hatched is published.

    `runs` maps a run's label to its value for each metric, `published` the label of a run to what was published for
    its model; a missing or not finite value leaves its place empty. `metrics` maps the metrics shown, in order, to
    what stands below them. Bars start at 0; the axis ends at 1 where no value is larger.
    """
    slots = [(place, label, of) for place, label in enumerate(runs) for of in (runs, published) if of.get(label)]
    num_bars = max(len(slots), 1) * max(len(metrics), 1)
    figure, (axes,) = new_figure(min(max(5.0, 1.0 + 0.2 * num_bars), 9.0), 3.2)
    width = 0.84 / max(len(slots), 1)
    largest, smallest = 1.0, 0.0
    for slot, (place, label, of) in enumerate(slots):
        values = np.array([of[label].get(metric, np.nan) for metric in metrics], dtype=np.float64)
        values[~np.isfinite(values)] = np.nan
        largest, smallest = max(largest, np.nanmax(values, initial=0)), min(smallest, np.nanmin(values, initial=0))
        x = np.arange(len(metrics)) + (slot - (len(slots) - 1) / 2) * width
        color = run_color(place)
        style = _HOLLOW if of is published else {"facecolor": color}
        axes.bar(x, values, width * 0.92, edgecolor=color, linewidth=0.8, **style)
        if place >= len(PALETTE):  # this colour stands for two runs: the marker tells them apart, as in the legend
            axes.plot(x, values, color="#222222", marker=_marker(place), markersize=3.5, linestyle="none")
        elif len(slots) <= 4:
            for at, value in zip(x[np.isfinite(values)], values[np.isfinite(values)], strict=True):
                axes.annotate(
                    f"{value:.3f}",
                    (at, max(value, 0)),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=7,
                    rotation=0 if len(slots) <= 2 else 90,
                    color="#444444",
                )
    axes.set_ylim(smallest * 1.05, largest * (1.09 if len(slots) <= 4 else 1.02))
    axes.set_xticks(np.arange(len(metrics)), [textwrap.fill(_plain(text), 16) for text in metrics.values()], fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    kinds: list[tuple[str, Artist]] = []
    if any(of is published for _, _, of in slots):
        kinds = [
            ("measured", Patch(edgecolor=GREY, facecolor=GREY)),
            ("published", Patch(edgecolor=GREY, **_HOLLOW)),
        ]
    _legend(figure, runs, {label for _, label, _ in slots}, kinds)
    return figure


def sorted_scores(runs: Mapping[str, np.ndarray], score_label: str, best_first: bool = False) -> Figure:
    """The scores of single rows, sorted: what share of the rows scores below a value, and how bad the worst are.

    `runs` maps a run's label to its scores, shape (N,); NaN (no score) is left out. The worst stand left: the smallest,
    or with `best_first` the largest. Each score stands in the middle of its share of the axis.
    """
    figure, (axes,) = new_figure(5.0, 3.2)
    drawn = set()
    for place, (label, scores) in enumerate(runs.items()):
        known = np.sort(scores[np.isfinite(scores)])
        if best_first:
            known = known[::-1]
        if len(known) == 0:
            continue
        drawn.add(label)
        share_percent = 100 * (np.arange(len(known)) + 0.5) / len(known)
        axes.plot(
            share_percent,
            known,
            color=run_color(place),
            linewidth=1.6,
            marker=_marker(place),
            markersize=3.5,
            markevery=math.ceil(len(known) / 30),
        )
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the clips, from the worst (%)")
    axes.set_ylabel(_plain(score_label))
    axes.ticklabel_format(axis="y", useOffset=False)
    _legend(figure, runs, drawn, [])
    return figure


def new_figure(width_in: float, height_in: float, heights: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """An empty figure of this size in inches, with one styled axes per relative height, top to bottom."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": list(heights)})
    all_axes: list[Axes] = list(grid[:, 0])
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(labelsize=8, color="#999999", labelcolor="#333333", which="both")
        axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.label.set(size=9, color="#222222")
        axes.yaxis.label.set(size=9, color="#222222")
    return figure, all_axes


def _legend(figure: Figure, runs: Mapping[str, object], drawn: set[str], kinds: Sequence[tuple[str, Artist]]) -> None:
    """A legend above the axes, where it covers no data; a single run needs no name."""
    entries: list[tuple[str, Artist]] = []
    if len(runs) > 1:
        for place, label in enumerate(runs):
            if label in drawn:
                line = Line2D([], [], color=run_color(place), marker=_marker(place), markersize=3.5)
                entries.append((_plain(label), line))
    entries += kinds
    if entries:
        longest = max(len(label) for label, _ in entries)
        ncols = 3 if longest <= 16 else 2 if longest <= 28 else 1
        # Each further row of the legend is added to the picture, so many runs don't squeeze the axes.
        figure.set_figheight(figure.get_figheight() + 0.17 * (math.ceil(len(entries) / ncols) - 1))
        figure.legend(
            [line for _, line in entries],
            [label for label, _ in entries],
            loc="outside upper left",
            ncols=ncols,
            fontsize=8,
            frameon=False,
            handlelength=2.4,
        )


def _marker(place: int) -> str:
    return MARKERS[place // len(PALETTE) % len(MARKERS)]


def _plain(text: str, max_length: int = 44) -> str:
    """Text that matplotlib draws as it stands: on one line, not too long, a dollar sign being no mathematics."""
    text = " ".join(text.split())
    text = text if len(text) <= max_length else text[: max_length - 1] + "…"
    return text.replace("$", r"\$")
