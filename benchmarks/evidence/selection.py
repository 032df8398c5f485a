"""Each objective's best point of the grid.

The criterion is the mean gold Average over the world's range of proxies, each at its first crossing: the frontier where
over-optimization begins. A run that does not reach the end of the range comes after all that do. The highest gold of a
run would not do: where gold falls from the start, every run has it at the base. It is the same oracle for every
objective. The point that the proxy alone would choose is recorded next to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from guardlit_callbacks.frontier import first_crossing, values_at

from benchmarks.evidence.curves import Array, logged, peak
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import METHODS, Setting

LEVELS = 50
"""Proxies of the range, equally spaced."""


@dataclass(frozen=True)
class Point:
    """A point of a method's grid, trained.

    Attributes:
        setting: where.
        clip_range: that clips the setting's fraction.
        frontier: mean gold Average over the range of proxies; None if the run does not reach its end.
        gold: highest gold Average of the run.
        gold_step: where it is reached.
        proxy: highest proxy of the run.
        last_gold: gold Average of the last evaluation.
        last_proxy: proxy of the last evaluation.
    """

    setting: Setting
    clip_range: float
    frontier: float | None
    gold: float
    gold_step: int
    proxy: float
    last_gold: float
    last_proxy: float


@dataclass(frozen=True)
class Choice:
    """An objective's best point.

    Attributes:
        best: the point of the highest mean gold at equal proxy.
        by_proxy: the point of the highest proxy.
        at_edge: whether the best point has the lowest or highest learning rate or clip fraction of the grid.
    """

    best: Point
    by_proxy: Point
    at_edge: bool


def points(trials: Iterable[Trial], compared: tuple[float, float]) -> dict[str, list[Point]]:
    """The finished points of a sweep, by objective; gold counts between the proxies `compared`."""
    found: dict[str, list[Point]] = {}
    for trial in trials:
        if trial.setting is not None and trial.run.finished():
            curves = logged(trial).gold
            gold, step = peak(curves, "average")
            proxy, _ = peak(curves, "proxy")
            last = float(curves["average"][-1]), float(curves["proxy"][-1])
            mean = mean_gold(curves["proxy"], curves["average"], compared)
            found.setdefault(trial.method, []).append(
                Point(trial.setting, float(trial.clip_range), mean, gold, step, proxy, *last)
            )
    return found


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


def choose(candidates: Sequence[Point]) -> Choice:
    """The best point of an objective; of equal ones the first, and of those below the range's end the highest proxy."""
    best = max(candidates, key=lambda p: (False, p.proxy) if p.frontier is None else (True, p.frontier))
    rates = {point.setting.lr for point in candidates}
    fractions = {point.setting.clipped for point in candidates}
    at_edge = best.setting.lr in (min(rates), max(rates)) or best.setting.clipped in (min(fractions), max(fractions))
    return Choice(best, max(candidates, key=lambda point: point.proxy), at_edge)


def best_settings(found: Mapping[str, Sequence[Point]]) -> dict[str, Setting]:
    """The best setting of each method: that of its objective, if it has a finished point."""
    best = {objective: choose(candidates).best.setting for objective, candidates in found.items()}
    return {name: best[method.objective] for name, method in METHODS.items() if method.objective in best}
