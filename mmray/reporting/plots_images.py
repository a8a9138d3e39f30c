"""Pictures of image classification, and marks for training in phases: plain arrays in, pixels or a figure out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mmray.reporting.plots import GREY, _plain, new_figure, run_color

MAX_CLASSES_IN_CELLS = 60
HOTTEST = 0.75  # of the heat map's colour in the overlay; the rest is the image, which stays to be seen


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image in grey, and over it the heat: the warmer a place, the more of the colour, which ends in yellow.

    `image`: uint8 (H, W, 3); `heat`: uint8 (H, W), 0 leaves the grey as it is. Gives uint8 (H, W, 3).
    """
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., np.newaxis]  # luma of BT.601
    color = matplotlib.colormaps["inferno"](heat)[..., :3] * 255
    share = HOTTEST * heat[..., np.newaxis] / 255
    mixed: np.ndarray = np.rint(grey * (1 - share) + color * share).astype(np.uint8)
    return mixed


def class_accuracy(accuracy: np.ndarray, class_names: Sequence[str], runs: Sequence[str]) -> Figure:
    """The accuracy of each class by each run, a column a run: the darker, the larger. Best classes are first.

    `accuracy`: (C, R) of 0 to 1, NaN where a class has no rows: a dash, and last. Classes go by their mean over runs;
    up to 60 have their percentages. ValueError unless there is a name for each row and column.
    """
    if accuracy.shape != (len(class_names), len(runs)) or 0 in accuracy.shape:
        raise ValueError(
            f"accuracies of shape {accuracy.shape} don't fit {len(class_names)} classes and {len(runs)} runs"
        )
    known = np.isfinite(accuracy)
    means = np.where(known, accuracy, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    order = np.argsort(-np.where(known.any(axis=1), means, -1), kind="stable")
    num_classes = len(class_names)
    with_cells = num_classes <= MAX_CLASSES_IN_CELLS
    height_in = 0.9 + (0.2 * num_classes if with_cells else 9.0)
    figure, (axes,) = new_figure(min(1.8 + 0.62 * len(runs), 9.0), height_in)
    axes.imshow(accuracy[order], cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    if with_cells:
        for (row, column), share in np.ndenumerate(accuracy[order]):
            text = f"{100 * share:.1f}" if math.isfinite(share) else "—"
            color = "#ffffff" if share > 0.66 else "#222222"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
    places = np.arange(0, num_classes, 1 if with_cells else math.ceil(num_classes / MAX_CLASSES_IN_CELLS))
    axes.set_yticks(places, [_plain(class_names[order[i]], 28) for i in places])
    names = [_plain(label, 28) for label in runs]
    if len(runs) == 1:
        axes.set_xticks([0], names)
    else:
        axes.set_xticks(np.arange(len(runs)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


def mark_phases(figure: Figure, runs: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """A line with the name of each phase where it begins, in every axes of a figure over training steps.

    `runs` maps the label of each run, in the order of the colours, to its phases: name and the steps before it. A mark
    of one run among several with phases has its colour, any other is grey.
    """
    marks: dict[int, dict[int, str]] = {}
    for place, phases in enumerate(runs.values()):
        for name, step in phases:
            marks.setdefault(step, {})[place] = name
    several = sum(map(bool, runs.values())) > 1
    for step, names in marks.items():
        color = run_color(next(iter(names))) if several and len(names) == 1 else GREY
        text = _plain(" / ".join(dict.fromkeys(names.values())))
        for axes in figure.axes:
            axes.axvline(step, color=color, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            axes.annotate(
                text,
                (step, 1),
                xycoords=axes.get_xaxis_transform(),
                xytext=(2, -2),
                textcoords="offset points",
                rotation=90,
                ha="left",
                va="top",
                fontsize=7,
                color=color,
            )
