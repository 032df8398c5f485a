"""Each objective's best point of the grid.

The criterion is the mean gold Average over the world's range of proxies, each at its first crossing: the frontier where
over-optimization begins. A run that does not reach the end of the range comes after all that do. The highest gold of a
run would not do: where gold falls from the start, every run has it at the base. It is the same oracle for every
objective. A sweep of one seed finds good points, but among them the lucky one: so the two best of each objective are
trained with other seeds, and the mean over all seeds decides; between equal ones, the lower learning rate. The point
that the proxy alone would choose is recorded next to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from guardlit_callbacks.frontier import first_crossing, values_at

from benchmarks.evidence.curves import Array, logged, peak
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import METHODS, Setting

FINALISTS = 2
"""Points of an objective's grid that are trained with other seeds."""
EQUAL = 0.005
"""Finalists whose mean gold differs by less count as equal: seeds differ by more."""
LEVELS = 50
"""Proxies of the range, equally spaced."""


@dataclass(frozen=True)
class Point:
    """A point of a method's grid, trained; means over its seeds.

    Attributes:
        setting: where.
        clip_range: that clips the setting's fraction.
        seeds: number of runs.
        frontier: mean gold Average over the range of proxies; None if a run does not reach its end.
        gold: highest gold Average of a run.
        gold_step: where it is reached.
        proxy: highest proxy of a run.
        last_gold: gold Average of the last evaluation.
        last_proxy: proxy of the last evaluation.
    """

    setting: Setting
    clip_range: float
    seeds: int
    frontier: float | None
    gold: float
    gold_step: float
    proxy: float
    last_gold: float
    last_proxy: float


@dataclass(frozen=True)
class Choice:
    """An objective's best point.

    Attributes:
        best: the finalist of the highest mean gold at equal proxy.
        by_proxy: the point of the sweep with the highest proxy.
        at_edge: whether the best point has the lowest or highest learning rate or clip fraction of the grid.
    """

    best: Point
    by_proxy: Point
    at_edge: bool


def points(trials: Iterable[Trial], compared: tuple[float, float]) -> dict[str, list[Point]]:
    """The finished points of a sweep, by objective; gold counts between the proxies `compared`."""
    runs: dict[tuple[str, Setting], list[Trial]] = {}
    for trial in trials:
        if trial.setting is not None and trial.run.finished():
            runs.setdefault((trial.method, trial.setting), []).append(trial)
    found: dict[str, list[Point]] = {}
    for (method, setting), own in runs.items():
        found.setdefault(method, []).append(_point(setting, own, compared))
    return found


def _point(setting: Setting, trials: Sequence[Trial], compared: tuple[float, float]) -> Point:
    curves = [logged(trial).gold for trial in trials]
    means = [mean_gold(c["proxy"], c["average"], compared) for c in curves]
    reached = [mean for mean in means if mean is not None]
    seen = [(*peak(c, "average"), peak(c, "proxy")[0], float(c["average"][-1]), float(c["proxy"][-1])) for c in curves]
    frontier = float(np.mean(reached)) if len(reached) == len(means) else None
    return Point(setting, float(trials[0].clip_range), len(trials), frontier, *np.mean(seen, axis=0).tolist())


def mean_gold(proxy: Array, gold: Array, compared: tuple[float, float]) -> float | None:
    """Mean gold over a range of proxies; None where its end is not reached.

    Args:
        proxy: (T,) over evaluations.
        gold: (T,).
        compared: the range, above the first proxy.
    """
    levels = np.linspace(*compared, LEVELS)[None]
    found = values_at(gold[None], first_crossing(proxy[None], levels))
    return None if np.isnan(found).any() else float(found.mean())


def _merit(point: Point) -> tuple[bool, float]:
    """By which points are ranked: of those below the range's end the highest proxy."""
    return (False, point.proxy) if point.frontier is None else (True, point.frontier)


def finalists(found: Mapping[str, Sequence[Point]]) -> dict[str, list[Setting]]:
    """The best settings of each objective in the sweep, of equal ones the first."""
    ranked = {objective: sorted(candidates, key=_merit, reverse=True) for objective, candidates in found.items()}
    return {objective: [point.setting for point in best[:FINALISTS]] for objective, best in ranked.items()}


def _best(candidates: Sequence[Point]) -> Point:
    """The best finalist; among equal ones that of the lowest learning rate, which is the most stable."""
    best = max(candidates, key=_merit)
    equal = [p for p in candidates if best.frontier and p.frontier and best.frontier - p.frontier < EQUAL]
    return min(equal, key=lambda point: point.setting.lr) if equal else best


def choose(candidates: Sequence[Point], grid: Sequence[Point]) -> Choice:
    """The best of the finalists `candidates`; `grid` are the points of the sweep."""
    best = _best(candidates)
    rates = {point.setting.lr for point in grid}
    fractions = {point.setting.clipped for point in grid}
    at_edge = best.setting.lr in (min(rates), max(rates)) or best.setting.clipped in (min(fractions), max(fractions))
    return Choice(best, max(grid, key=lambda point: point.proxy), at_edge)


def best_settings(found: Mapping[str, Sequence[Point]], chosen: Mapping[str, Sequence[Setting]]) -> dict[str, Setting]:
    """The best setting of each method: that of its objective, of the finalists `chosen`."""
    best = {
        objective: _best([p for p in candidates if p.setting in chosen[objective]]).setting
        for objective, candidates in found.items()
    }
    return {name: best[method.objective] for name, method in METHODS.items() if method.objective in best}
