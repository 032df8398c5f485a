"""The figures that the callbacks draw while training and a report draws afterwards.

Pure functions from arrays to a `matplotlib.figure.Figure`: no pyplot, no global state, no display. Colours are Okabe
and Ito's (2008), which stay apart for colour-blind readers; steps are coloured by cividis, dark to light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks._statistics import Array, clip_shares, max_over_min, moments, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from guardlit_callbacks._report_curves import Band

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
PALETTE = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#555555"

RIDGE_BINS = 35
RIDGE_OVERLAP = 1.25


@dataclass(frozen=True)
class RatioSamples:
    """The log ratios of one round.

    Attributes:
        step: index of the denoising step, (n,) int.
        log_ratio: log importance ratio, (n,), dimensionless.
        clipped: whether the ratio lies outside the clip range, (n,) bool; None where the objective does not clip it.
    """

    step: Array
    log_ratio: Array
    clipped: Array | None = None


@dataclass(frozen=True)
class ProxyGoldCurve:
    """What one run was rewarded for, and what was only watched.

    Attributes:
        step: optimizer step of each evaluation, (n,) int.
        proxy: mean proxy reward, (n,), drawn over its first value; None where there is none.
        gold: gold average over the base model's, (n,), 1 = as good as the base model.
        low: lower end of the interval of `gold`, (n,).
        high: its upper end, (n,).
    """

    step: Array
    proxy: Array | None
    gold: Array
    low: Array
    high: Array


def turning_point(curve: ProxyGoldCurve) -> int | None:
    """Where over-optimization starts: the index of the best gold score, or None where what follows is none.

    It is some where a later gold score is lower by more than the noise (the two half-intervals, added as independent
    errors) while the proxy is higher, as `OverOptimizationStop` judges it.
    """
    best = int(np.argmax(curve.gold))
    noise = curve.gold - curve.low
    fallen = curve.gold[best] - curve.gold > np.hypot(noise[best], noise)
    risen = True if curve.proxy is None else curve.proxy > curve.proxy[best]
    return best if np.any((fallen & risen)[best:]) else None


def ratio_figure(panels: Mapping[str, RatioSamples], *, title: str = "") -> Figure:
    """Distribution of the log ratio at every denoising step (Fig. 2), one panel a method or kind of ratio.

    Each ridge is a histogram within 3.5 standard deviations, scaled to its own peak, of the ratios that are not exactly
    1 (those of a round's first update are); its dot is the mean of all, the number beside it that mean in units of the
    step's standard deviation. Bars show the share of samples clipped below (left)
    and above (right) the range.

    Args:
        panels: the samples under the panel's title.
        title: of the whole figure.
    """
    steps = sorted({int(t) for samples in panels.values() for t in np.unique(samples.step)})
    widths = [w for samples in panels.values() for w in ((3.0, 1.3) if samples.clipped is not None else (3.0,))]
    figure = _figure(1.25 * sum(widths) + 0.9, 0.42 * len(steps) + 1.7, title)
    axes = iter(figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0])
    for index, (name, samples) in enumerate(panels.items()):
        ridges = next(axes)
        _draw_ridges(ridges, samples, steps)
        ridges.set_title(name, fontsize=10)
        if index == 0:
            ridges.set_ylabel("denoising step (0 = most noise)")
            ridges.set_yticks(range(len(steps)), [str(t) for t in steps])
            ridges.set_ylim(len(steps) - 0.4, -1.45)
        if samples.clipped is not None:
            _draw_clip_shares(next(axes), samples, steps)
    return figure


def gradient_figure(panels: Mapping[str, Mapping[str, Mapping[int, float]]], *, title: str = "") -> Figure:
    """Gradient magnitude at every denoising step on a log axis (Fig. 3).

    Args:
        panels: panel title (which gradient) -> method or run -> step -> mean norm, in units of the loss. A curve with a
            value that is not above 0 shows only its other values.
        title: of the whole figure.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(4.6 * len(panels) + 0.4, 3.6, title)
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (label, per_step), colour, marker in zip(curves.items(), PALETTE, MARKERS, strict=False):
            positive = {t: v for t, v in per_step.items() if v > 0}
            legend = f"{label} (max/min {max_over_min(per_step):.1f})"
            axes.plot(list(positive), list(positive.values()), color=colour, marker=marker, ms=5, label=legend)
        axes.set_yscale("log")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("denoising step (0 = most noise)")
        axes.set_ylabel("mean gradient norm")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
        _tidy(axes)
    return figure


def proxy_gold_figure(curves: Mapping[str, ProxyGoldCurve], *, title: str = "") -> Figure:
    """Proxy (dashed) and gold (solid, with its interval) over training, both as multiples of their start (Fig. 1).

    A ring marks a run's best gold score where over-optimization follows it (`turning_point`).

    Args:
        curves: the evaluations of each run under its name; one run takes two colours, several take one each.
        title: of the whole figure.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(6.4, 3.9, title)
    axes = figure.subplots()
    for (name, curve), colour, marker in zip(curves.items(), PALETTE, MARKERS, strict=False):
        gold_colour, prefix = (BLUE, "") if len(curves) == 1 else (colour, f"{name}: ")
        if curve.proxy is not None:
            style: dict[str, Any] = {"color": colour, "ls": "--", "marker": marker, "mfc": "white", "ms": 4}
            axes.plot(curve.step, _relative(curve.proxy), label=f"{prefix}proxy", **style)
        axes.fill_between(curve.step, curve.low, curve.high, color=gold_colour, alpha=0.2, lw=0)
        axes.plot(curve.step, curve.gold, color=gold_colour, marker=marker, ms=4, label=f"{prefix}gold")
        if (best := turning_point(curve)) is not None:
            _mark_best(axes, curve, best, gold_colour, "best gold" if len(curves) == 1 else "")
    axes.axhline(1.0, color=GREY, lw=0.8)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("score / score at the start")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(
        loc="outside lower center", ncols=len(curves) if len(curves) in (2, 3) else 3, frameon=False, fontsize=9
    )
    _tidy(axes)
    return figure


def training_figure(panels: Mapping[str, tuple[str, Mapping[str, Band]]], *, title: str = "") -> Figure:
    """Training curves of one or more methods (Fig. 7): the mean over seeds, and their range as a band.

    Args:
        panels: panel title (what is shown) -> unit of its axis, and method -> curve.
        title: of the whole figure.
    """
    from matplotlib.ticker import MaxNLocator

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(max(3.3 * columns + 0.3, 6.4), 2.5 * rows + 0.5, title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = dict(zip(dict.fromkeys(name for _, curves in panels.values() for name in curves), PALETTE, strict=False))
    lines = {}
    for axes, (name, (unit, curves)) in zip(grid, panels.items(), strict=False):
        for label, curve in curves.items():
            if curve.runs > 1:
                axes.fill_between(curve.step, curve.low, curve.high, color=colours[label], alpha=0.2, lw=0)
            (lines[label],) = axes.plot(curve.step, curve.mean, color=colours[label], lw=1.3, label=label)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel(unit)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _mark_best(axes: Axes, curve: ProxyGoldCurve, best: int, colour: str, text: str) -> None:
    """A ring on the gold curve, and a dotted line up or down to the proxy there."""
    at, gold = curve.step[best], curve.gold[best]
    if curve.proxy is not None:
        axes.plot([at, at], [gold, _relative(curve.proxy)[best]], color=colour, ls=":", lw=1.2)
    axes.plot(at, gold, "o", color=colour, mfc="none", ms=11, mew=1.5)
    axes.annotate(text, (at, gold), (0, -9), textcoords="offset points", ha="center", va="top", fontsize=8)


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def _draw_ridges(axes: Axes, samples: RatioSamples, steps: list[int]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    # The widest step sets the range; half a percent of outliers at each end must not.
    by_step = split(samples.step, samples.log_ratio)
    reach = max((float(np.quantile(np.abs(v), 0.995)) for v in by_step.values()), default=0.0) or 1.0
    axes.axvline(0, color=GREY, lw=0.8, zorder=0)
    for row, t in enumerate(steps):
        if t not in by_step:
            continue
        mean, std, _ = moments(by_step[t])
        moved = by_step[t][by_step[t] != 0]
        height, edges = np.histogram(moved, RIDGE_BINS, (mean - 3.5 * std, mean + 3.5 * std))
        centres = (edges[1:] + edges[:-1]) / 2
        ridge = row - RIDGE_OVERLAP * height / max(height.max(), 1)
        colour = colormaps["cividis"](0.1 + 0.75 * row / max(len(steps) - 1, 1))
        axes.fill_between(centres, row, ridge, color=colour, alpha=0.7, lw=0, zorder=row + 1)
        axes.plot(centres, ridge, color=colour, lw=1.0, zorder=row + 1)
        axes.plot(np.clip(mean, -reach, reach), row, "o", color=VERMILION, mec="white", ms=5, zorder=len(steps) + 2)
        if std:
            axes.text(1.0, row - 0.08, f"{mean / std:+.2f}", transform=axes.get_yaxis_transform(), ha="right",
                      va="bottom", fontsize=8, color="black", zorder=len(steps) + 3)  # fmt: skip
    axes.text(1.0, -1.4, "mean / std", transform=axes.get_yaxis_transform(), ha="right", va="top", fontsize=8)
    axes.set_xlim(-reach, reach * 1.25)
    axes.set_xlabel("log ratio")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_clip_shares(axes: Axes, samples: RatioSamples, steps: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    rows: dict[str, Any] = {"above": [], "below": []}
    for t in steps:
        at = samples.step == t
        clipped = samples.clipped[at] if samples.clipped is not None else np.zeros(at.sum(), bool)
        above, below = clip_shares(samples.log_ratio[at], clipped)
        rows["above"].append(100 * above)
        rows["below"].append(-100 * below)
    places = np.arange(len(steps)) - 0.25
    axes.barh(places, rows["below"], height=0.5, color=BLUE)
    axes.barh(places, rows["above"], height=0.5, color=ORANGE)
    axes.axvline(0, color=GREY, lw=0.8)
    reach = max(1.0, np.nanmax(np.abs([rows["above"], rows["below"]])) * 1.1)
    axes.set_xlim(-reach, reach)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("clipped (%)\n← below    above →")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _relative(proxy: Array) -> Array:
    """The proxy over its first value; a start at or below 0 has no ratio, so its largest change becomes 1 instead."""
    first = float(proxy[0])
    if first > 0:
        return np.divide(proxy, first)
    change = np.subtract(proxy, first)
    return np.add(1, change / (np.abs(change).max() or 1.0))
