"""Building blocks of the figures: a grid of axes laid out in inches, and the panels of Fig. 2.

The layout is fixed, since matplotlib's layout engines measure every label twice: a third of a figure's cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks.tools.statistics import Array, clip_fractions, moments, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
OKABE_ITO = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)
PALETTE = (*OKABE_ITO, "#000000", "#882255", "#999933", "#332288", "#888888", "#117733", "#A65628", "#E7298A")
"""Colors of methods or runs: Okabe and Ito's first, then darker ones."""
MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "p", "*", "h", "d", "8", "H")
"""Their markers."""
LINES = ("-",) * 6 + ("--",) * 4 + ("-.",) * 4
"""Their lines: beyond the first six, color alone does not tell methods apart."""
GRAY = "#555555"

LEGEND_LINE = 0.21
"""Height of a line of a legend, in inches."""

DPI = 90
"""Resolution of the figures made during training, where half their cost is pixels; a report's are finer."""

FAR = 3.0
"""A clip range farther out than this many widths of the widest step is not shown."""

RIDGE_BINS = 35
RIDGE_OVERLAP = 1.25


@dataclass(frozen=True)
class Margins:
    """Space around the axes of a figure, in inches; `between` columns and `below` rows there is room for labels."""

    left: float
    bottom: float
    between: float = 0.0
    below: float = 0.0
    right: float = 0.15
    top: float = 0.3


def axes_grid(
    widths: Sequence[float], heights: Sequence[float], margins: Margins, title: str
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and its axes, row by row.

    Args:
        widths: of the columns, in inches.
        heights: of the rows, in inches.
        margins: around them.
        title: of the figure; takes no space if empty.
    """
    from matplotlib.figure import Figure

    top = margins.top + (0.3 if title else 0.0)
    width = margins.left + sum(widths) + margins.between * (len(widths) - 1) + margins.right
    height = margins.bottom + sum(heights) + margins.below * (len(heights) - 1) + top
    figure = Figure(figsize=(width, height), dpi=DPI)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.08 / height, va="top")
    places = {"left": margins.left / width, "right": 1 - margins.right / width}
    places |= {"bottom": margins.bottom / height, "top": 1 - top / height}
    places |= {"wspace": margins.between / float(np.mean(widths)), "hspace": margins.below / float(np.mean(heights))}
    shape = len(heights), len(widths)
    grid = figure.subplots(*shape, squeeze=False, width_ratios=widths, height_ratios=heights, gridspec_kw=places)
    return figure, grid.tolist()


def legend_columns(labels: Sequence[str], width: float, most: int = 3) -> int:
    """Number of legend columns, at most `most`, that fit into a width in inches at font size 9."""
    longest = 0.5 + 0.07 * max(map(len, labels), default=0)  # handle and spacing, and the mean width of a letter
    return max(1, min(most, len(labels), int(width / longest)))


def tidy(axes: Axes) -> None:
    """Removes what is not needed to read values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def plot_ridges(
    axes: Axes, step: Array, log_ratio: Array, steps: Sequence[int], clip_range: Array | None = None
) -> float:
    """Plots a histogram of the log ratio per step, one above the other, with mean and mean / std.

    Returns:
        The log ratio at the end of the axis.
    """
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection
    from matplotlib.ticker import MaxNLocator

    # The widest step sets the range, without half a percent of outliers at each end.
    by_step = split(step, log_ratio)
    limit = max((float(np.quantile(np.abs(v), 0.995)) for v in by_step.values()), default=0.0) or 1.0
    rows = {t: row for row, t in enumerate(steps) if t in by_step}
    stats = {t: moments(by_step[t]) for t in rows}
    axes.axvline(0, color=GRAY, lw=0.8, zorder=0)
    colors = colormaps["cividis"](0.1 + 0.75 * np.array(list(rows.values())) / max(len(steps) - 1, 1))
    outlines = [_ridge(by_step[t], stats[t].mean, stats[t].std, row) for t, row in rows.items()]
    axes.add_collection(PolyCollection(outlines, facecolors=colors * [1, 1, 1, 0.7], edgecolors=colors, lw=1.0))
    means = np.clip([stats[t].mean for t in rows], -limit, limit)
    axes.plot(means, list(rows.values()), "o", color=VERMILION, mec="white", ms=5, zorder=3)
    at_right: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "fontsize": 8, "zorder": 4}
    for t, row in rows.items():
        if stats[t].std:
            axes.text(1.0, row - 0.08, f"{stats[t].mean / stats[t].std:+.2f}", va="bottom", **at_right)
    axes.text(1.0, -1.4, "mean / std", va="top", **at_right)
    if clip_range is not None:
        limit = _plot_clip_range(axes, clip_range, limit, len(steps) - 0.42)
    axes.set_xlim(-limit, limit * 1.25)
    axes.set_xlabel("log ratio (dimensionless)")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _bare(axes, len(steps))
    return limit


def _plot_clip_range(axes: Axes, clip_range: Array, limit: float, bottom: float) -> float:
    """Plots the ends of the clip range, (rounds, 2); returns the limit of the axis, which shows them if they are near.

    An end that clips nothing is not known, and lies beyond all samples.
    """
    ends = np.nanmax(np.abs(clip_range), initial=0.0)
    limit = max(limit, 1.1 * ends) if ends <= FAR * limit else limit
    for column, color, side in ((0, BLUE, "right"), (1, ORANGE, "left")):
        values = clip_range[:, column][np.isfinite(clip_range[:, column])]
        if not values.size:
            continue
        if values.max() - values.min() > 0.01 * limit:
            axes.axvspan(values.min(), values.max(), color=color, alpha=0.2, lw=0, zorder=0)
        axes.axvline(float(np.median(values)), color=color, ls="--", lw=1.2, zorder=1)
        if ends <= limit:
            axes.text(float(np.median(values)), bottom, " clip ", color=color, ha=side, va="bottom", fontsize=8)
    return limit


def plot_clip_fractions(axes: Axes, step: Array, log_ratio: Array, clipped: Array, steps: Sequence[int]) -> None:
    """Plots bars of the fractions clipped below (left) and above (right) per step."""
    from matplotlib.ticker import MaxNLocator

    chosen = [step == t for t in steps]
    above, below = 100 * np.array([clip_fractions(log_ratio[at], clipped[at]) for at in chosen]).T
    places = np.arange(len(steps)) - 0.25
    axes.barh(places, -below, height=0.5, color=BLUE)
    axes.barh(places, above, height=0.5, color=ORANGE)
    axes.axvline(0, color=GRAY, lw=0.8)
    limit = max(1.0, np.nanmax([above, below]) * 1.1)
    axes.set_xlim(-limit, limit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("clipped (%)\n← below    above →")
    _bare(axes, len(steps))


def _ridge(values: Array, mean: float, std: float, row: int) -> Array:
    """The outline of a step's histogram on the baseline of its row; (points, 2)."""
    height, edges = np.histogram(values[values != 0], RIDGE_BINS, (mean - 3.5 * std, mean + 3.5 * std))
    centers = (edges[1:] + edges[:-1]) / 2
    ridge = row - RIDGE_OVERLAP * height / max(height.max(), 1)
    return np.column_stack([np.r_[centers[0], centers, centers[-1]], np.r_[row, ridge, row]])


def _bare(axes: Axes, steps: int) -> None:
    """Removes the frame; one row per step, the first on top."""
    axes.set_ylim(steps - 0.4, -1.45)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
