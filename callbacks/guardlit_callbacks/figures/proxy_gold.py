"""Proxy reward and gold score over training (Fig. 1 of GRPO-Guard), and where over-optimization starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks.figures.drawing import (
    BLUE,
    GRAY,
    LEGEND_LINE,
    LINES,
    MARKERS,
    PALETTE,
    VERMILION,
    Margins,
    axes_grid,
    legend_columns,
    tidy,
)
from guardlit_callbacks.tools.statistics import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_RANGE = 0.5
"""The proxy's axis shows at least this change either way, in standard deviations: a small change looks small."""


@dataclass(frozen=True)
class ProxyGoldCurve:
    """Proxy reward and gold score of one run over training.

    Attributes:
        step: optimizer step of each evaluation, (n,) int.
        proxy: mean proxy reward, (n,), of any sign; None if absent.
        gold: gold average over the base model's, (n,), 1 = as good as the base model.
        low: lower end of the interval of `gold`, (n,).
        high: its upper end, (n,).
        spread: standard deviation of the proxy reward at the start, the unit in which its change is plotted; None where
            it is not known.
    """

    step: Array
    proxy: Array | None
    gold: Array
    low: Array
    high: Array
    spread: float | None = None


def turning_point(curve: ProxyGoldCurve) -> int | None:
    """Where over-optimization starts: the index of the best gold score, or None without over-optimization.

    A run over-optimizes if a later gold score is lower by more than the noise (the two half-intervals, added as
    independent errors) while the proxy is higher; `OverOptimizationStop` has the same criterion.
    """
    best = int(np.argmax(curve.gold))
    noise = curve.gold - curve.low
    fallen = curve.gold[best] - curve.gold > np.hypot(noise[best], noise)
    risen = True if curve.proxy is None else curve.proxy > curve.proxy[best]
    return best if np.any((fallen & risen)[best:]) else None


def first_spread(stds: Array) -> float | None:
    """The first standard deviation of (n,) that is above 0: that of the start, unless all rewards are equal there."""
    positive = stds[np.isfinite(stds) & (stds > 0)]
    return float(positive[0]) if positive.size else None


def proxy_gold_figure(curves: Mapping[str, ProxyGoldCurve], *, title: str = "") -> Figure:
    """Proxy (dashed, above) and gold (solid, below, with its interval) over training.

    The proxy may have any sign and any unit: its panel shows the change since the start, in standard deviations of the
    reward at the start, or in its own unit where a run's standard deviation is not known. Gold is the average of the
    scores over the base model's. A ring marks a run's best gold score before over-optimization (`turning_point`).

    Args:
        curves: run name -> its evaluations.
        title: of the figure.
    """
    from matplotlib.ticker import MaxNLocator

    shown = [curve for curve in curves.values() if curve.proxy is not None]
    known = all(curve.spread for curve in shown)
    heights = [1.7, 2.3] if shown else [2.8]
    columns = legend_columns(list(curves), 6.4)
    lines = -(-len(curves) // columns) if len(curves) > 1 else 0
    margins = Margins(left=0.85, bottom=0.55 + LEGEND_LINE * lines + (0.05 if lines else 0), below=0.2, top=0.2)
    figure, grid = axes_grid([5.6], heights, margins, title)
    gold, above = grid[-1][0], [row[0] for row in grid[:-1]]
    colors = PALETTE if len(curves) > 1 else (BLUE,)
    for (name, curve), color, marker, line in zip(curves.items(), colors, MARKERS, LINES, strict=False):
        best = turning_point(curve)
        if curve.proxy is not None:
            style: dict[str, Any] = {"color": color if len(curves) > 1 else VERMILION, "mfc": "white", "ms": 4}
            above[0].plot(curve.step, _change(curve, known), ls="--", marker=marker, **style)
        gold.fill_between(curve.step, curve.low, curve.high, color=color, alpha=0.2, lw=0)
        gold.plot(curve.step, curve.gold, line, color=color, marker=marker, ms=4, label=name)
        if best is not None:
            _mark_best(gold, above, curve, best, color, "best gold" if len(curves) == 1 else "")
    gold.axhline(1.0, color=GRAY, lw=0.8)
    gold.set_xlabel("optimizer step")
    gold.set_ylabel("gold: average of\nscore / base score", fontsize=9)
    for axes in above:
        _finish_proxy(axes, gold, known)
    gold.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lines:
        figure.legend(*gold.get_legend_handles_labels(), loc="lower center", ncols=columns, frameon=False, fontsize=9)
    tidy(gold)
    return figure


def _finish_proxy(axes: Axes, gold: Axes, known: bool) -> None:
    """The proxy's axis; both panels have the same steps."""
    axes.axhline(0.0, color=GRAY, lw=0.8)
    if known:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -SMALLEST_RANGE), max(high, SMALLEST_RANGE))
    unit = "std at the start" if known else "its own unit"
    axes.set_ylabel(f"proxy: change\n({unit})", fontsize=9)
    axes.sharex(gold)
    axes.tick_params(labelbottom=False)
    tidy(axes)


def _change(curve: ProxyGoldCurve, known: bool) -> Array:
    """The proxy's change since the start, (n,)."""
    change: Array = np.subtract(curve.proxy, curve.proxy[0])  # type: ignore[index, arg-type]
    return change / curve.spread if known and curve.spread else change


def _mark_best(gold: Axes, above: Sequence[Axes], curve: ProxyGoldCurve, best: int, color: str, text: str) -> None:
    """Plots a ring on the gold curve, and a dotted line through all panels."""
    at, value = curve.step[best], curve.gold[best]
    for axes in (gold, *above):
        axes.axvline(at, color=color, ls=":", lw=1.2, zorder=0)
    gold.plot(at, value, "o", color=color, mfc="none", ms=11, mew=1.5)
    gold.annotate(text, (at, value), (0, -9), textcoords="offset points", ha="center", va="top", fontsize=8)
