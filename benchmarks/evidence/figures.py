"""The figures of docs/evidence*.md: frontiers, training curves (Fig. 7), and ratios and gradients (Figs. 2 and 3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw what the full-length runs show, and return the files; none without such runs."""
    if not (figures := _figures(study)):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"evidence_{study.world.name}_{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name], dpi=RESOLUTION)
    return list(paths.values())


def _figures(study: Study) -> dict[str, Figure]:
    from guardlit_callbacks.figures.frontier import frontier_figure

    world = study.world
    methods = {name: own for name, own in study.at(world.reference).items() if name not in PENALIZED}
    if not methods:
        return {}
    curves = _curves(methods)
    found = {"frontier": frontier_figure(curves), "detail": _detail(curves, world.compared[0], bands=PAIR)}
    if others := _of_the_pair(study):
        found["settings"] = _detail(_curves(others), world.compared[0])
    if penalized := _with_penalty(study):
        found["kl"] = frontier_figure(_curves(penalized))
    found["training"] = training_figure(_panels(methods))
    pair = [Method(name, tuple(map(logged, methods[name])), ()) for name in PAIR if name in methods]
    found["ratio"] = ratio_figure({method.label: samples for method in pair if (samples := method.ratio_samples())})
    found["gradient"] = gradient_figure(
        {panel: {method.label: method.gradient(kind) for method in pair} for kind, panel in PARTS.items()}
    )
    return found


def _of_the_pair(study: Study) -> dict[str, list[Trial]]:
    """The pair's trials at each of its settings, by a label for both; none where they have one setting."""
    settings = study.world.settings[PAIR[0]]
    labels = {
        f"{name}, {setting.lr:g}, {setting.clipped:.0%}": (name, setting) for setting in settings for name in PAIR
    }
    found = {label: study.at(setting).get(name, []) for label, (name, setting) in labels.items()}
    return {label: own for label, own in found.items() if own} if len(settings) > 1 else {}


def _with_penalty(study: Study) -> dict[str, list[Trial]]:
    """The pair's trials and those of Flow-GRPO with its penalty, at the setting of that; none without the last."""
    (name,) = PENALIZED
    there = study.at(study.world.settings[name][0])
    return {own: there[own] for own in (*PAIR, name) if own in there} if name in there else {}


def _detail(curves: Mapping[str, Curve], low: float, bands: Collection[str] = ()) -> Figure:
    """The end of the frontier, from a proxy on: every evaluation marked, and the bands of some methods."""
    from guardlit_callbacks.figures.frontier import BEST, frontier_figure

    figure = frontier_figure({name: _shown(own, band=name in bands) for name, own in curves.items()})
    (axes,) = figure.axes
    for line in axes.lines:
        line.set_markevery(None)
    proxy = np.concatenate([own.axes["proxy"].ravel() for own in curves.values()])
    gold = np.concatenate([own.gold.ravel() for own in curves.values()])[proxy >= low]
    if gold.size:
        axes.set_xlim(low, proxy.max() + 0.02 * (proxy.max() - low))
        axes.set_ylim(gold.min() - 0.01, gold.max() + 0.01)
    peaks = [own.axes["proxy"].mean(axis=0)[own.best] for own in curves.values()]
    _keep_in_legend(figure, [*curves, BEST] if max(peaks) >= low else curves)
    return figure


def _keep_in_legend(figure: Figure, names: Collection[str]) -> None:
    """Take out of the legend what lies outside the panel."""
    from guardlit_callbacks.figures.drawing import legend_columns

    (legend,) = figure.legends
    found = zip(legend.get_texts(), legend.legend_handles, strict=True)
    entries = {text.get_text(): handle for text, handle in found if text.get_text() in names}
    legend.remove()
    columns = legend_columns(list(entries), figure.get_figwidth() - 0.1, most=4)
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=columns, frameon=False, fontsize=9)


def _shown(curve: Curve, band: bool) -> Curve:
    """A curve against proxy; without a band its mean over seeds."""
    proxy, gold = curve.axes["proxy"], curve.gold
    if not band:
        proxy, gold = proxy.mean(axis=0, keepdims=True), gold.mean(axis=0, keepdims=True)
    return replace(curve, gold=gold, axes={"proxy": proxy})


def _curves(methods: Mapping[str, list[Trial]]) -> dict[str, Curve]:
    paths = {
        name: MethodPaths(name, tuple(read_path(t.run.parts(), f"seed {t.seed}") for t in own))
        for name, own in methods.items()
    }
    return {name: found for name, own in paths.items() if (found := curve(own))}


def _panels(methods: Mapping[str, list[Trial]]) -> dict[str, tuple[str, dict[str, Band]]]:
    found = {name: Method(name, tuple(map(logged, own)), ()) for name, own in methods.items()}
    panels = {
        title: (unit, {name: band for name, method in found.items() if (band := method.gold(column))})
        for title, (column, unit) in PANELS.items()
    }
    distances = {name: band for name, method in found.items() if (band := method.scalar("kl/sqrt_from_base"))}
    return panels | ({"distance from the base": ("sqrt(KL), sqrt(nats)", distances)} if distances else {})
