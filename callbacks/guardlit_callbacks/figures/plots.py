"""The figures of the callbacks and the report: pure functions from arrays to a `matplotlib.figure.Figure`.

No pyplot, no global state, no display. The first six colors are Okabe and Ito's (2008), which color-blind readers can
tell apart; further ones come with other markers and lines. Steps are colored by cividis, dark to light.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks.figures.drawing import (
    LEGEND_LINE,
    LINES,
    MARKERS,
    PALETTE,
    Margins,
    axes_grid,
    legend_columns,
    plot_clip_fractions,
    plot_ridges,
    tidy,
)
from guardlit_callbacks.tools.statistics import Array, max_over_min

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "LINES",
    "MARKERS",
    "PALETTE",
    "Band",
    "RatioSamples",
    "gradient_figure",
    "ratio_figure",
    "training_figure",
]


MARKED = 0.2
"""Distance of a training curve's markers, as a fraction of the figure's diagonal."""


@dataclass(frozen=True)
class RatioSamples:
    """The log ratios of one round.

    Attributes:
        step: index of the denoising step, (n,) int.
        log_ratio: log importance ratio, (n,), dimensionless.
        clipped: whether the ratio lies outside the clip range, (n,) bool; None if the objective does not clip it.
        clip_range: ends of the range by round, (rounds, 2), as `clip_range` of `tools.statistics` finds them.
    """

    step: Array
    log_ratio: Array
    clipped: Array | None = None
    clip_range: Array | None = None


@dataclass(frozen=True)
class Band:
    """A quantity over training, of one run or several.

    Attributes:
        step: optimizer steps, (n,) int, rising.
        mean: over the runs, (n,).
        low: their smallest value, (n,).
        high: their largest, (n,).
        runs: number of runs.
    """

    step: Array
    mean: Array
    low: Array
    high: Array
    runs: int = 1


def ratio_figure(panels: Mapping[str, RatioSamples], *, title: str = "") -> Figure:
    """Distribution of the log ratio at every denoising step (Fig. 2), one panel per method or kind of ratio.

    Each ridge is a histogram within 3.5 standard deviations, scaled to its own peak, without ratios of exactly 1 (those
    of a round's first update). The dot is the mean of all, the number at the right that mean in standard deviations.
    Bars show the fraction of samples clipped below (left) and above (right) the range. Dashed lines are the ends of the
    clip range, or bands where it changed. A panel says how wide its axis is compared with the first panel's; the bars
    of all panels have one scale.

    Args:
        panels: panel title -> samples.
        title: of the figure.
    """
    steps = sorted({int(t) for samples in panels.values() for t in np.unique(samples.step)})
    widths = [w for samples in panels.values() for w in ((3.4, 1.4) if samples.clipped is not None else (3.4,))]
    margins = Margins(left=0.6, between=0.12, bottom=0.7, top=0.5)
    figure, grid = axes_grid(widths, [0.42 * len(steps) + 0.5], margins, title)
    axes, first, bars = iter(grid[0]), 0.0, []
    for index, (name, samples) in enumerate(panels.items()):
        ridges = next(axes)
        limit = plot_ridges(ridges, samples.step, samples.log_ratio, steps, samples.clip_range)
        first = first or limit
        scale = "" if 0.95 < limit / first < 1.05 else f"\n(axis {limit / first:.2g} times as wide as the first)"
        ridges.set_title(f"{name}{scale}", fontsize=10, y=1)
        if index == 0:
            ridges.set_ylabel("denoising step (0 = most noise)")
            ridges.set_yticks(range(len(steps)), [str(t) for t in steps])
        if samples.clipped is not None:
            bars.append(next(axes))
            plot_clip_fractions(bars[-1], samples.step, samples.log_ratio, samples.clipped, steps)
    widest = max((limit for bar in bars for limit in bar.get_xlim()), default=0.0)
    for bar in bars:
        bar.set_xlim(-widest, widest)
    return figure


def gradient_figure(panels: Mapping[str, Mapping[str, Mapping[int, float]]], *, title: str = "") -> Figure:
    """Gradient magnitude at every denoising step on a log axis (Fig. 3).

    Args:
        panels: panel title (which gradient) -> method or run -> step -> mean norm, in units of the loss. Values that
            are not above 0 are left out.
        title: of the figure.
    """
    from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullLocator

    lines = max(len(curves) for curves in panels.values())
    margins = Margins(left=0.85, between=0.95, bottom=0.6 + LEGEND_LINE * lines)
    figure, grid = axes_grid([3.7] * len(panels), [2.6], margins, title)
    for axes, (name, curves) in zip(grid[0], panels.items(), strict=True):
        for (label, per_step), color, marker, line in zip(curves.items(), PALETTE, MARKERS, LINES, strict=False):
            positive = {t: v for t, v in per_step.items() if v > 0}
            legend = f"{label} (max/min {max_over_min(per_step):.1f})"
            axes.plot(list(positive), list(positive.values()), line, color=color, marker=marker, ms=5, label=legend)
        axes.set_yscale("log")
        axes.set_ylim(_decade_or_more([v for curve in curves.values() for v in curve.values() if v > 0]))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(np.inf, np.inf)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(name, fontsize=10, y=1)
        axes.set_xlabel("denoising step (0 = most noise)")
        axes.set_ylabel("mean gradient norm (units of the loss)", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False, fontsize=9)
        tidy(axes)
    return figure


def training_figure(
    panels: Mapping[str, tuple[str, Mapping[str, Band]]], *, title: str = "", least_change: float = 0.0
) -> Figure:
    """Training curves of one or more methods: the mean over seeds, and their range as a band.

    Args:
        panels: panel title (what is shown) -> unit of its axis, and method -> curve.
        title: of the figure.
        least_change: of a curve's first value, the fraction that its axis shows at least in either direction.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    names = dict.fromkeys(name for _, curves in panels.values() for name in curves)
    colors, markers, styles = (dict(zip(names, looks, strict=False)) for looks in (PALETTE, MARKERS, LINES))
    width = 2.6 if columns > 1 else 5.7
    in_legend = legend_columns(list(colors), columns * (width + 0.85))
    margins = Margins(left=0.85, between=0.85, below=0.85, bottom=0.6 + LEGEND_LINE * -(-len(colors) // in_legend))
    figure, grid = axes_grid([width] * columns, [1.7] * rows, margins, title)
    cells = [axes for row in grid for axes in row]
    lines = {}
    for axes, (name, (unit, curves)) in zip(cells, panels.items(), strict=False):
        for label, curve in curves.items():
            if curve.runs > 1:
                axes.fill_between(curve.step, curve.low, curve.high, color=colors[label], alpha=0.2, lw=0)
            style: dict[str, Any] = {"color": colors[label], "marker": markers[label], "ls": styles[label]}
            style |= {"lw": 1.3, "ms": 4, "mew": 0}
            (lines[label],) = axes.plot(curve.step, curve.mean, **style, markevery=MARKED, label=label)
        if least_change:
            firsts = np.array([curve.mean[0] for curve in curves.values()])
            axes.update_datalim(
                [(0.0, v) for v in (firsts.min() * (1 - least_change), firsts.max() * (1 + least_change))],
                updatex=False,
            )
            axes.autoscale_view(scalex=False)
        axes.set_title(name, fontsize=9, y=1)
        axes.set_ylabel(unit, fontsize=9)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.yaxis.get_offset_text().set_fontsize(8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        tidy(axes)
    for axes in cells[len(panels) :]:
        axes.set_visible(False)
    figure.legend(lines.values(), lines.keys(), loc="lower center", ncols=in_legend, frameon=False, fontsize=9)
    return figure


def _decade_or_more(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a log axis around the values; at least a decade, so that a flat curve looks flat and has ticks."""
    low, high = np.log10([min(values, default=1.0), max(values, default=1.0)])
    half = max(0.55 * (high - low), 0.5)
    return float(10 ** ((low + high) / 2 - half)), float(10 ** ((low + high) / 2 + half))
