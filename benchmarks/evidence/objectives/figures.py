"""The figures of docs/evidence_objectives.md: a frontier in a panel a method, and the clip's evenness."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.evidence.figures import RESOLUTION
from benchmarks.evidence.objectives.methods import BASELINES
from benchmarks.evidence.tables import Document

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRAYS = dict(zip(BASELINES[:2], (("#444444", "o", "-"), ("#444444", "s", "--")), strict=True))
"""Color, marker and line of the methods that every panel has."""
COLUMNS = 4
LABELS = {"proxy": "proxy reward", "kl": "sqrt(KL from the base) (sqrt nats)"}
Paths = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""x and gold of each method, (seeds, T) each."""
Look = tuple[str, str, str]
"""Color, marker and line of a method."""


def draw(document: Document, folder: Path) -> list[Path]:
    """Draw the finished seeds, and return the files; none without one."""
    if not document["seeds"]:
        return []
    figures = {
        "frontier": _frontier(_paths(document, "proxy"), LABELS["proxy"]),
        "distance": _frontier(_paths(document, "kl"), LABELS["kl"]),
        "evenness": _evenness(document),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"evidence_objectives_{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(files[name], dpi=RESOLUTION)
    return list(files.values())


def _paths(document: Document, axis: str) -> Paths:
    found = {}
    for name, own in document["methods"].items():
        curves = [seed["curves"] for seed in own["seeds"].values()]
        x = [c["proxy"] for c in curves]
        if axis == "kl":
            kl = [seed["scalars"]["kl/sqrt_from_base"] for seed in own["seeds"].values()]
            x = [np.interp(c["step"], k["step"], k["value"]) for c, k in zip(curves, kl, strict=True)]
        found[name] = np.array(x, dtype=np.float64), np.array([c["average"] for c in curves], dtype=np.float64)
    return found


def _looks(methods: Iterable[str]) -> dict[str, Look]:
    """How each method looks in every figure."""
    from guardlit_callbacks.figures import LINES, MARKERS, PALETTE

    # without the palette's gray, which is the two baselines'
    colored = (look for look in zip(PALETTE, MARKERS, LINES, strict=True) if look[0] != "#888888")
    return {name: GRAYS[name] if name in GRAYS else next(colored) for name in methods}


def _frontier(paths: Paths, label: str) -> Figure:
    """Small multiples: a method's mean over seeds in color with each seed thin, and two methods in gray behind it."""
    from guardlit_callbacks.figures.drawing import Margins, axes_grid, tidy

    looks = _looks(paths)
    shown = [name for name in paths if name not in GRAYS]
    rows = -(-len(shown) // COLUMNS) if shown else 1
    margins = Margins(left=0.75, bottom=0.85, between=0.25, below=0.4)
    figure, grid = axes_grid([2.3] * COLUMNS, [1.7] * rows, margins, "")
    panels: list[Axes] = [axes for row in grid for axes in row]
    for axes in panels[1:]:
        axes.sharex(panels[0])
        axes.sharey(panels[0])
    for axes, name in zip(panels, shown, strict=False):
        for baseline, (gray, _, line) in GRAYS.items():
            if baseline in paths:
                x, gold = paths[baseline]
                axes.plot(x.mean(axis=0), gold.mean(axis=0), line, color=gray, lw=1.0, label=baseline)
        (x, gold), color = paths[name], looks[name][0]
        for one, its in zip(x, gold, strict=True):
            axes.plot(one, its, color=color, lw=0.6, alpha=0.5)
        axes.plot(x.mean(axis=0), gold.mean(axis=0), "-", color=color, lw=1.8, marker="o", ms=3)
        axes.set_title(name, fontsize=9, y=1)
        axes.tick_params(labelsize=8)
        tidy(axes)
    for number, axes in enumerate(panels):
        axes.set_visible(number < len(shown))
        axes.tick_params(labelleft=number % COLUMNS == 0, labelbottom=number + COLUMNS >= len(shown))
    figure.supxlabel(label, fontsize=9, y=0.33 / figure.get_figheight())
    figure.supylabel("gold: average of score / base score", fontsize=9, x=0.01)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _evenness(document: Document) -> Figure:
    """The clipped fraction over the denoising steps: at the left with one range, at the right with one a step."""
    from guardlit_callbacks.figures.drawing import Margins, axes_grid, tidy

    from benchmarks.evidence.objectives.methods import AUTO, PER_STEP

    looks = _looks(document["methods"])
    rows = document["plan"]["methods"]
    figure, grid = axes_grid([3.4, 3.4], [3.0], Margins(left=0.75, bottom=0.55, between=0.3, right=1.9), "")
    grid[0][1].sharey(grid[0][0])
    for axes, kind, title in zip(grid[0], (AUTO, PER_STEP), ("one clip range", "one clip range a step"), strict=True):
        for name, own in document["methods"].items():
            if rows[name]["clip_range"] != kind:
                continue
            steps = sorted({int(t) for run in own["clipped"] for t in run["by_step"]})
            mean = [np.nanmean([run["by_step"].get(str(t), np.nan) for run in own["clipped"]]) for t in steps]
            color, marker, line = looks[name]
            axes.plot(steps, mean, line, color=color, marker=marker, ms=5, lw=1.3, label=name)
        axes.axhline(0.2, color="#555555", lw=0.8, zorder=0)
        axes.set_title(title, fontsize=10, y=1)
        axes.set_xlabel("denoising step (0 = most noise)")
        tidy(axes)
    grid[0][0].set_ylabel("clipped fraction, off-policy")
    grid[0][1].tick_params(labelleft=False)
    grid[0][0].set_ylim(0, None)
    found = [axes.get_legend_handles_labels() for axes in grid[0]]
    figure.legend([h for hs, _ in found for h in hs], [n for _, ns in found for n in ns], loc="center right",
                  frameon=False, fontsize=8)  # fmt: skip
    return figure
