"""Pictures of corpora of videos: from arrays to figures. Nothing is read or written here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from mmray.reporting.plots import PALETTE, new_figure

MAX_COUNTS = 20


def ranked_counts(counts: Mapping[str, int], axis: str) -> Figure:
    """A bar a name, the largest count first, with the count beside it; at most `MAX_COUNTS` of them.

    The idea is Figures 2 and 3 of the YouTube-8M study with text: what words and labels are common, side by side.
    """
    names = sorted(counts, key=lambda name: -counts[name])[:MAX_COUNTS]
    figure, (axes,) = new_figure(4.2, 0.7 + 0.18 * len(names))
    place = np.arange(len(names))
    bars = axes.barh(place, [counts[name] for name in names], color=PALETTE[0], height=0.7)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2, color="#444444")
    # A name is shown as it stands: a dollar sign is no mathematics.
    axes.set_yticks(place, [" ".join(name.split()).replace("$", r"\$")[:40] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    return figure
