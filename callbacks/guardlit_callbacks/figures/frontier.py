"""The frontier: gold against proxy and against the distance from the base (Gao et al. 2023, arXiv 2210.10760)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from guardlit_callbacks.frontier import Curve
from guardlit_callbacks.tools.statistics import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch

LABELS = {"proxy": "proxy reward (its own unit)", "sqrt_kl": "sqrt(KL from the base) (sqrt nats)"}
GOLD = "gold: average of\nscore / base score"
BASE, BEST, EVALUATIONS = "base", "best gold", "evaluations, dark first"
WIDTH, HEIGHT = 3.5, 2.8
"""Of a panel, in inches."""


def frontier_figure(curves: Mapping[str, Curve], *, title: str = "") -> Figure:
    """Gold against proxy and, where it is known, against sqrt(KL) from the base: a path a method, from the base on.

    A path is the mean over seeds at each evaluation, and its band has the paths of all seeds in it. A cross marks the
    base, a ring the best gold, behind which a method over-optimizes, and the method's marker the last evaluation.

    Args:
        curves: method -> its curve.
        title: of the figure.
    """
    figure, panels, handles = _panels(curves, [*curves, BASE, BEST], title)
    for axis, axes in panels.items():
        for (label, curve), *look in zip(curves.items(), PALETTE, MARKERS, LINES, strict=False):
            if axis in curve.axes:
                handles[label] = _plot_path(axes, curve, axis, *look)
    (handles[BEST],) = _ring(next(iter(panels.values())), np.nan, np.nan, GRAY)
    return _with_legend(figure, handles)


def run_frontier_figure(curve: Curve, *, title: str = "") -> Figure:
    """The path of one run so far: its evaluations in order, the base, the best gold and the latest.

    Args:
        curve: of one run.
        title: of the figure.
    """
    from matplotlib import colormaps

    best = curve.best
    names = [BASE, EVALUATIONS, f"{BEST}, step {curve.step[best]}", f"latest, step {curve.step[-1]}"]
    figure, panels, handles = _panels({"": curve}, names, title)
    colors = colormaps["cividis"](np.linspace(0.05, 0.95, curve.step.size))
    gold = curve.gold.mean(axis=0)
    for axis, axes in panels.items():
        x = curve.axes[axis].mean(axis=0)
        axes.plot(x, gold, color=GRAY, lw=0.8, zorder=2)
        handles[names[1]] = axes.scatter(x, gold, c=colors, s=22, lw=0, zorder=3)
        (handles[names[2]],) = _ring(axes, x[best], gold[best], BLUE)
        latest: dict[str, Any] = {"color": VERMILION, "mec": "white", "ms": 8, "ls": "", "zorder": 4}
        (handles[names[3]],) = axes.plot(x[-1], gold[-1], "D", **latest)
    return _with_legend(figure, handles)


def _panels(
    curves: Mapping[str, Curve], names: Sequence[str], title: str
) -> tuple[Figure, dict[str, Axes], dict[str, Any]]:
    """A panel for each axis that a curve has, with the base marked, and the legend's handles so far, by name."""
    from matplotlib.ticker import MaxNLocator

    shown = [axis for axis in LABELS if any(axis in curve.axes for curve in curves.values())]
    width = WIDTH if len(shown) > 1 else 2 * WIDTH - 1
    lines = -(-len(names) // _columns(names, len(shown)))
    margins = Margins(left=0.9, bottom=0.6 + LEGEND_LINE * lines, between=0.45, top=0.2)
    figure, grid = axes_grid([width] * len(shown), [HEIGHT], margins, title)
    panels, handles = dict(zip(shown, grid[0], strict=True)), dict.fromkeys(names)
    for axis, axes in panels.items():
        starts = [(c.axes[axis][:, 0].mean(), c.gold[:, 0].mean()) for c in curves.values() if axis in c.axes]
        (handles[BASE],) = axes.plot(*zip(*starts, strict=True), "X", color="black", mec="white", ms=9, zorder=5)
        axes.axhline(1.0, color=GRAY, lw=0.8, zorder=1)
        axes.set_xlabel(LABELS[axis])
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(0.06)
        tidy(axes)
        if axes is grid[0][0]:
            axes.set_ylabel(GOLD, fontsize=9)
        else:
            axes.sharey(grid[0][0])
            axes.tick_params(labelleft=False)
    return figure, panels, handles


def _columns(names: Sequence[str], panels: int) -> int:
    """Columns of the legend below one or two panels."""
    return legend_columns(names, 8.3 if panels > 1 else 6.9, most=4)


def _with_legend(figure: Figure, handles: Mapping[str, Any]) -> Figure:
    columns = _columns(list(handles), len(figure.axes))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _plot_path(axes: Axes, curve: Curve, axis: str, color: str, marker: str, line: str) -> Any:
    """A method's path and band; returns the line for the legend."""
    x, gold = curve.axes[axis].mean(axis=0), curve.gold.mean(axis=0)
    if len(curve.gold) > 1:
        axes.add_patch(_band(curve.axes[axis], curve.gold, color))
    _ring(axes, x[curve.best], gold[curve.best], color)
    style: dict[str, Any] = {"color": color, "ls": line, "lw": 1.6, "marker": marker, "ms": 6, "mec": "white"}
    (path,) = axes.plot(x, gold, **style, markevery=[-1], zorder=3)
    return path


def _ring(axes: Axes, x: float, y: float, color: str) -> Any:
    return axes.plot(x, y, "o", color=color, mfc="none", ms=12, mew=1.6, ls="", zorder=4)


def _band(x: Array, y: Array, color: str) -> PathPatch:
    """The area of S paths, (S, T): between each two evaluations the convex hull of all paths there."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    known = np.flatnonzero(np.isfinite(x).all(axis=0))
    points = np.stack([x, y], axis=-1)[:, known]
    hulls = [hull(points[:, t : t + 2].reshape(-1, 2)) for t in range(known.size - 1)]
    outline = Path.make_compound_path(*(Path(np.concatenate([h, h[:1]]), closed=True) for h in hulls))
    return PathPatch(outline, facecolor=color, alpha=0.2, lw=0, zorder=2)


def hull(points: Array) -> Array:
    """The corners of the convex hull of (n, 2) points, counterclockwise: one direction, so that hulls add up."""
    order = [points[i] for i in np.lexsort((points[:, 1], points[:, 0]))]
    chains = []
    for side in (order, order[::-1]):
        chain: list[Array] = []
        for point in side:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        chains += chain[:-1]
    return np.array(chains)


def _turn(a: Array, b: Array, c: Array) -> float:
    """Above 0 if a, b, c turn left."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
