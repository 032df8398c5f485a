"""The figures of docs/evidence.md: frontiers, training curves (Fig. 7), and ratios and gradients (Figs. 2 and 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from guardlit_callbacks.figures import Band, gradient_figure, ratio_figure, training_figure
from guardlit_callbacks.frontier import Curve, MethodPaths, curve, read_path
from guardlit_callbacks.report.methods import Method
from guardlit_callbacks.report.tables import PARTS

from benchmarks.evidence.curves import logged
from benchmarks.evidence.study import Study
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import METHODS, PAIR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"proxy reward": ("proxy", "reward (its own unit)"), "gold Average": ("average", "score / base score")}
RESOLUTION = 150
PENALIZED = tuple(name for name, method in METHODS.items() if method.options)
SHOWN = {
    "frontier": tuple(name for name in METHODS if name not in PENALIZED),
    "kl": (*PAIR, *PENALIZED),
}
"""The methods of each frontier: the rows of Table 2, and Flow-GRPO with and without its penalty."""


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw what the final runs show, and return the files; none without final runs."""
    methods: dict[str, list[Trial]] = {name: [] for name in METHODS}
    for trial in study.of("final"):
        methods[trial.method].append(trial)
    methods = {name: own for name, own in methods.items() if own}
    if not methods:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in _figures(methods, study.world.compared[0]).items():
        paths.append(folder / f"evidence_{study.world.name}_{name}.png")
        figure.savefig(paths[-1], dpi=RESOLUTION)
    return paths


def _figures(methods: Mapping[str, list[Trial]], detailed: float) -> dict[str, Figure]:
    from guardlit_callbacks.figures.frontier import frontier_figure

    chosen = {name: [m for m in shown if m in methods] for name, shown in SHOWN.items()}
    curves = {name: _curves(methods, names) for name, names in chosen.items()}
    found = {name: frontier_figure(own) for name, own in curves.items()}
    found["detail"] = _detail(curves["frontier"], detailed)
    found["training"] = training_figure(_panels(methods, chosen["frontier"]))
    pair = [Method(name, tuple(map(logged, methods[name])), ()) for name in PAIR if name in methods]
    found["ratio"] = ratio_figure({method.label: samples for method in pair if (samples := method.ratio_samples())})
    found["gradient"] = gradient_figure(
        {panel: {method.label: method.gradient(kind) for method in pair} for kind, panel in PARTS.items()}
    )
    return found


def _detail(curves: Mapping[str, Curve], low: float) -> Figure:
    """The end of the frontier, from a proxy on: every evaluation marked, bands of the pair alone."""
    from guardlit_callbacks.figures.frontier import frontier_figure

    figure = frontier_figure({name: _shown(own, band=name in PAIR) for name, own in curves.items()})
    (axes,) = figure.axes
    for line in axes.lines:
        line.set_markevery(None)
    proxy = np.concatenate([own.axes["proxy"].ravel() for own in curves.values()])
    gold = np.concatenate([own.gold.ravel() for own in curves.values()])[proxy >= low]
    if gold.size:
        axes.set_xlim(low, proxy.max() + 0.02 * (proxy.max() - low))
        axes.set_ylim(gold.min() - 0.01, gold.max() + 0.01)
    return figure


def _shown(curve: Curve, band: bool) -> Curve:
    """A curve against proxy; without a band its mean over seeds."""
    proxy, gold = curve.axes["proxy"], curve.gold
    if not band:
        proxy, gold = proxy.mean(axis=0, keepdims=True), gold.mean(axis=0, keepdims=True)
    return replace(curve, gold=gold, axes={"proxy": proxy})


def _curves(methods: Mapping[str, list[Trial]], names: Iterable[str]) -> dict[str, Curve]:
    paths = {
        name: MethodPaths(name, tuple(read_path(t.run.parts(), f"seed {t.seed}") for t in methods[name]))
        for name in names
    }
    return {name: found for name, own in paths.items() if (found := curve(own))}


def _panels(methods: Mapping[str, list[Trial]], names: Iterable[str]) -> dict[str, tuple[str, dict[str, Band]]]:
    found = {name: Method(name, tuple(map(logged, methods[name])), ()) for name in names}
    panels = {
        title: (unit, {name: band for name, method in found.items() if (band := method.gold(column))})
        for title, (column, unit) in PANELS.items()
    }
    distances = {name: band for name, method in found.items() if (band := method.scalar("kl/sqrt_from_base"))}
    return panels | ({"distance from the base": ("sqrt(KL), sqrt(nats)", distances)} if distances else {})
