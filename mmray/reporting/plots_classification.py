"""The pictures of single-label classification: confusions, intervals, calibration, emotion over time, and the sound."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mmray.reporting.plots import DPI, PALETTE, _legend, _marker, _plain, new_figure, run_color

MAX_CELLS_WITH_SHARES = 10
MAX_CELLS_WITH_COUNTS = 40
NUM_COLUMNS_SEEN = 1200  # of a waveform or spectrogram: more than the picture has pixels for
RANGE_DB = 80.0

Interval = tuple[float, float]


def confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """A confusion matrix, labels down and predictions across: the darker, the larger the share of the label's rows.

    `matrix`: (K, K) rows, [true, predicted]. Up to 10 classes each cell has its share of the label's rows in percent
    and its number of rows, up to 40 the number; more classes have colours only. A label without rows has no shares.
    ValueError unless the matrix is square and has a name for each class.
    """
    num_classes = len(class_names)
    if matrix.shape != (num_classes, num_classes) or num_classes == 0:
        raise ValueError(f"a confusion matrix of shape {matrix.shape} doesn't fit {num_classes} class names")
    side_in = min(max(1.1 + 0.78 * num_classes, 3.1), 5.0) if num_classes <= MAX_CELLS_WITH_SHARES else 9.0
    figure, (axes,) = new_figure(side_in + 0.5, side_in)
    of_label = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(of_label, 1)
    # Single confusions among many classes are small shares, which only a scale of roots lets see. The darkest colour
    # stays lighter than the map's, for white text.
    scale = PowerNorm(1 if num_classes <= MAX_CELLS_WITH_SHARES else 0.5, vmin=0, vmax=1.15)
    axes.imshow(shares, cmap="Blues", norm=scale, aspect="auto")
    size = 7.5 if num_classes <= MAX_CELLS_WITH_SHARES else max(4.5, 8.5 - num_classes / 10)
    names = [_plain(name, 16) for name in class_names]
    if num_classes <= MAX_CELLS_WITH_COUNTS:
        for row, column in np.argwhere(matrix > 0) if num_classes > MAX_CELLS_WITH_SHARES else np.ndindex(matrix.shape):
            share, count = shares[row, column], f"{matrix[row, column]:,}"
            text = count
            if num_classes <= MAX_CELLS_WITH_SHARES:
                text = f"{share:.1%}\n{count}" if of_label[row] else "—"
            color = "#ffffff" if scale(share) > 0.58 else "#222222"
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color, linespacing=1.35)
        places = np.arange(num_classes)
    else:
        places = np.arange(0, num_classes, math.ceil(num_classes / MAX_CELLS_WITH_COUNTS))
    upright = num_classes <= 5 and max(map(len, names)) <= 9
    turn: dict[str, Any] = {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    tick_size = 8 if num_classes <= MAX_CELLS_WITH_SHARES else 6.5
    axes.set_xticks(places, [names[i] for i in places], fontsize=tick_size, **turn)
    axes.set_yticks(places, [names[i] for i in places], fontsize=tick_size)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def interval_chart(
    runs: Mapping[str, Mapping[str, float]],
    intervals: Mapping[str, Mapping[str, Interval]],
    published: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, str],
) -> Figure:
    """Scores as points with their intervals as lines: a row for each metric, in it one for each run, from above.

    `runs` maps a run's label to its value for each metric, `intervals` to (low, high) for those that have one,
    `published` to what was published for its model: a hollow point in the run's colour. `metrics` maps the metrics
    shown, in order, to what stands beside them. Missing and not finite values are left out.
    """
    slots = max(len(runs), 1)
    figure, (axes,) = new_figure(6.0, 0.75 + len(metrics) * (0.2 + 0.11 * slots))
    drawn = set()
    for place, label in enumerate(runs):
        y = np.arange(len(metrics)) + (place - (slots - 1) / 2) * 0.7 / slots
        for at, metric in zip(y, metrics, strict=True):
            value = runs[label].get(metric, math.nan)
            color = run_color(place)
            low, high = intervals.get(label, {}).get(metric, (math.nan, math.nan))
            if math.isfinite(value):
                drawn.add(label)
                axes.plot(value, at, color=color, marker=_marker(place), markersize=4.5)
            if math.isfinite(low) and math.isfinite(high):
                axes.plot([low, high], [at, at], color=color, linewidth=1.6, alpha=0.6, solid_capstyle="butt")
            other = published.get(label, {}).get(metric, math.nan)
            if math.isfinite(other):
                drawn.add(label)
                axes.plot(other, at, color=color, marker=_marker(place), markersize=6, fillstyle="none", linewidth=0)
    axes.set_yticks(np.arange(len(metrics)), [_plain(text) for text in metrics.values()])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    for place in range(1, len(metrics)):
        axes.axhline(place - 0.5, color="#e4e4e4", linewidth=0.6)
    with_ends = " with its 95 % interval" if any(intervals.values()) else ""
    axes.set_xlabel(f"value{with_ends}{'; hollow: published' if any(published.values()) else ''}")
    _legend(figure, runs, drawn, [])
    return figure


def reliability(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """How often a model is right against how sure it is; below, how many rows there are at each level of sureness.

    `runs` maps a run's label to its bins, rising, each with `low`, `high`, `count`, `confidence` (the mean of its
    rows' highest probabilities) and `accuracy`. On the grey line the model is as often right as it says; below it it's
    too sure of itself. The area of a point goes by its rows.
    """
    figure, (upper, lower) = new_figure(4.2, 4.4, heights=(3, 1))
    upper.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=1.0)
    for place, bins in enumerate(runs.values()):
        if not bins:
            continue
        count = np.array([one["count"] for one in bins], np.float64)
        x, y = (np.array([one[key] for one in bins]) for key in ("confidence", "accuracy"))
        color = run_color(place)
        upper.plot(x, y, color=color, linewidth=1.2, alpha=0.7)
        area = 6 + 60 * count / count.max()  # whole points also at the edges of the axes: many rows have 1.0
        upper.scatter(x, y, s=area, color=color, marker=_marker(place), alpha=0.8, linewidth=0, clip_on=False)
        edges = np.array([[one["low"], one["low"], one["high"], one["high"]] for one in bins]).ravel()
        heights = np.column_stack([0 * count, count, count, 0 * count]).ravel() / count.sum()
        lower.plot(edges, heights, color=color, linewidth=1.2)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("share that is right")
    upper.tick_params(labelbottom=False)
    lower.sharex(upper)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3))
    lower.set_ylabel("share of rows")
    lower.set_xlabel("highest probability of a row")
    _legend(figure, runs, {label for label, bins in runs.items() if bins}, [])
    return figure


def timeline(times_s: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> Figure:
    """The probabilities of the classes over a whole recording, stacked to 1, and below them the class that is ahead.

    `times_s`: (N,) where each piece starts, in seconds, rising; it lasts until the next one starts, the last one as
    long as the others do in the middle (30 s if it is the only one). `probabilities`: (N, K), rows sum to 1. Of more
    than 7 classes the 6 of most probability have a colour, the others share a grey. ValueError if there is no piece or
    the shapes don't fit.
    """
    if len(times_s) == 0 or probabilities.shape != (len(times_s), len(class_names)):
        raise ValueError(
            f"{len(times_s)} times, probabilities {probabilities.shape} and {len(class_names)} class names don't fit; "
            "expected (N,), (N, K) and K, N 1 or more"
        )
    length_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 30.0
    edges_s = np.append(times_s, times_s[-1] + length_s)
    shown = _most(probabilities, len(PALETTE) - 1)
    areas = [probabilities[:, i] for i in shown]
    names, colors = [class_names[i] for i in shown], [PALETTE[k] for k in range(len(shown))]
    if len(shown) < len(class_names):
        areas.append(1 - np.sum(areas, axis=0))
        names.append(f"{len(class_names) - len(shown)} others")
        colors.append("#bbbbbb")
    winner = probabilities.argmax(axis=1)
    color_of = {i: colors[shown.index(i)] if i in shown else "#bbbbbb" for i in range(len(class_names))}

    figure, (upper, lower) = new_figure(9.0, 2.7, heights=(7, 1))
    base = np.zeros(len(times_s))
    for area, color in zip(areas, colors, strict=True):
        top = base + area
        lower_edge, upper_edge = (np.append(line, line[-1]) for line in (base, top))
        upper.fill_between(edges_s, lower_edge, upper_edge, step="post", color=color, linewidth=0, alpha=0.85)
        base = top
    for klass, pieces in groupby(range(len(times_s)), key=lambda i: winner[i]):
        several = list(pieces)
        start_s, end_s = edges_s[several[0]], edges_s[several[-1] + 1]
        lower.broken_barh([(start_s, end_s - start_s)], (0, 1), facecolors=color_of[klass], linewidth=0)
    upper.set_xlim(edges_s[0], edges_s[-1])
    upper.set_ylim(0, 1)
    upper.set_ylabel("probability")
    upper.tick_params(labelbottom=False)
    upper.grid(visible=False)
    lower.sharex(upper)
    lower.set_yticks([0.5], ["most probable"], fontsize=8)
    lower.set_ylim(0, 1)
    lower.tick_params(axis="y", length=0)
    lower.grid(visible=False)
    lower.set_xlabel("time (min:s)")
    lower.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 1.5, 3, 6, 10], integer=True))
    lower.xaxis.set_major_formatter(FuncFormatter(_clock))
    handles = [Patch(facecolor=color, alpha=0.85) for color in colors]
    figure.legend(
        handles,
        [_plain(name, 24) for name in names],
        loc="outside upper left",
        ncols=len(handles),
        fontsize=8,
        frameon=False,
        handlelength=1.0,
    )
    return figure


def augmentation_panel(sounds: Sequence[tuple[str, np.ndarray, int]]) -> Figure:
    """Sounds side by side, say one before and after each change: the waveform of each above its spectrogram.

    `sounds`: (title, samples, sample_rate_hz), samples (n,) of about -1 to 1. All share the axes of time, amplitude,
    frequency and level, so what differs is the sound: levels in dB below the loudest point of them all, white from 80
    dB below on. ValueError without sounds, and for an empty one.
    """
    empty = [title for title, samples, _ in sounds if np.size(samples) == 0]
    if not sounds or empty:
        raise ValueError(f"{f'{empty[0]!r} has no samples' if empty else 'no sounds'}: there is nothing to draw")
    columns = len(sounds)
    figure = Figure(figsize=(1.0 + 2.3 * columns, 3.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": (2, 3)})
    longest_s = max(len(samples) / rate for _, samples, rate in sounds)
    loudest = max(float(np.max(np.abs(samples))) for _, samples, _ in sounds) or 1.0
    maps = [_spectrogram(np.asarray(samples, np.float64), rate) for _, samples, rate in sounds]
    peak = max(float(power.max()) for power, _, _ in maps) or 1.0
    for column, ((title, samples, rate), (power, times_s, khz)) in enumerate(zip(sounds, maps, strict=True)):
        upper, lower = grid[:, column]
        low, high, at_s = _envelope(np.asarray(samples, np.float64), rate)
        upper.fill_between(at_s, low, high, color=PALETTE[0], linewidth=0.4)
        upper.set_title(_plain(title, 30), fontsize=9)
        level_db = 10 * np.log10(np.maximum(power / peak, 1e-12))
        lower.pcolormesh(times_s, khz, level_db, cmap="magma_r", vmin=-RANGE_DB, vmax=0, rasterized=True)
        lower.set_xlabel("time (s)", fontsize=9)
        for axes in (upper, lower):
            axes.tick_params(labelsize=8, color="#999999", labelcolor="#333333")
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color("#999999")
    grid[0, 0].set_xlim(0, longest_s)
    grid[0, 0].set_ylim(-1.05 * loudest, 1.05 * loudest)
    grid[0, 0].set_ylabel("amplitude", fontsize=9)
    grid[1, 0].set_ylim(0, max(rate for _, _, rate in sounds) / 2000)
    grid[1, 0].set_ylabel("frequency (kHz)", fontsize=9)
    return figure


def feature_map(values: np.ndarray, hop_s: float, row_names: Sequence[str]) -> Figure:
    """The features of one segment over time, a panel for each family of rows, low rows at the bottom.

    `values`: (T, D), frames `hop_s` apart; `row_names`: D names such as `mfcc 3`, whose family is what comes before
    the number; rows of one family stand together. Rows differ in scale by orders of magnitude, so each is drawn in its
    own standard deviations from its own mean: blue below it, red above it. ValueError if there is nothing to draw or
    the names don't fit.
    """
    if values.ndim != 2 or 0 in values.shape or values.shape[1] != len(row_names):
        raise ValueError(f"a map of shape {values.shape} doesn't fit {len(row_names)} row names; expected (T, D) and D")
    families = [(name, len(list(rows))) for name, rows in groupby(_family(name) for name in row_names)]
    map64 = values.astype(np.float64)
    spread = map64.std(axis=0)
    scaled = (map64 - map64.mean(axis=0)) / np.where(spread > 1e-9 * np.abs(map64).max(axis=0, initial=0), spread, 1)
    scaled = np.where(spread > 0, scaled, 0)
    figure, panels = new_figure(6.0, 1.0 + 0.085 * min(len(row_names), 40), [max(n, 3) for _, n in families])
    first = 0
    for axes, (family, num_rows) in zip(panels, families, strict=True):
        part = scaled[:, first : first + num_rows].T
        axes.imshow(
            part,
            cmap="RdBu_r",
            vmin=-3,
            vmax=3,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            extent=(0, len(values) * hop_s, -0.5, num_rows - 0.5),
        )
        axes.set_ylabel(_plain(family, 20))
        axes.set_yticks(range(0, num_rows, math.ceil(num_rows / 4)))
        axes.grid(visible=False)
        axes.tick_params(labelbottom=axes is panels[-1])
        first += num_rows
    panels[-1].set_xlabel("time (s)")
    return figure


def _family(name: str) -> str:
    """`mfcc 3`, `mfcc_3` and `mfcc3` -> mfcc."""
    return re.sub(r"[ _-]*\d+$", "", name) or name


def _most(probabilities: np.ndarray, number: int) -> list[int]:
    """The classes to be drawn, in class order: all where the colours suffice, else those of most probability."""
    num_classes = probabilities.shape[1]
    if num_classes <= number + 1:
        return list(range(num_classes))
    return sorted(np.argsort(-probabilities.sum(axis=0), kind="stable")[:number].tolist())


def _clock(seconds: float, _: object = None) -> str:
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes}:{s:02d}"


def _envelope(samples: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lowest and highest sample of each stretch of time, at most `NUM_COLUMNS_SEEN`, and their middles (s)."""
    starts = np.unique(np.linspace(0, len(samples), NUM_COLUMNS_SEEN, endpoint=False).astype(np.int64))
    ends = np.append(starts[1:], len(samples))
    middles_s = (starts + ends) / 2 / sample_rate_hz
    return np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts), middles_s


def _spectrogram(samples: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Power (F, T) under a Hann window of 64 ms, the times (s) and the frequencies (kHz) of its edges.

    Windows are as far apart as the picture can show, so parts of a long sound stand in none: a picture, no analysis.
    """
    size = max(2, 2 * round(0.032 * sample_rate_hz))
    padded = np.pad(samples, size // 2)
    num_frames = min(NUM_COLUMNS_SEEN, max(1, len(samples) // (size // 4)))
    starts = (np.arange(num_frames) + 0.5) * len(samples) / num_frames
    frames = padded[starts.astype(np.int64)[:, np.newaxis] + np.arange(size)] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    times_s = np.arange(num_frames + 1) * len(samples) / num_frames / sample_rate_hz
    # The first and last row are half a bin high.
    edges = np.clip(np.arange(power.shape[1] + 1) - 0.5, 0, size / 2)
    return power.T, times_s, edges * sample_rate_hz / size / 1000
