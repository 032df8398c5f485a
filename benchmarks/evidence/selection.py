"""Each method's best point of the grid.

The criterion is the highest gold Average at any evaluation of the sweep: what a checkpoint at the best gold score would
keep. It is the same oracle for every method. The point that the proxy alone would choose is recorded next to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.evidence.curves import logged, peak
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import Setting


@dataclass(frozen=True)
class Point:
    """A point of a method's grid, trained.

    Attributes:
        setting: where.
        clip_range: that clips the setting's fraction.
        gold: highest gold Average of the run.
        gold_step: where it is reached.
        proxy: highest proxy of the run.
        last_gold: gold Average of the last evaluation.
        last_proxy: proxy of the last evaluation.
    """

    setting: Setting
    clip_range: float
    gold: float
    gold_step: int
    proxy: float
    last_gold: float
    last_proxy: float


@dataclass(frozen=True)
class Choice:
    """A method's best point.

    Attributes:
        best: the point of the highest gold Average.
        by_proxy: the point of the highest proxy.
        at_edge: whether the best point has the lowest or highest learning rate or clip fraction of the grid.
    """

    best: Point
    by_proxy: Point
    at_edge: bool


def points(trials: Iterable[Trial]) -> dict[str, list[Point]]:
    """The finished points of a sweep, by method."""
    found: dict[str, list[Point]] = {}
    for trial in trials:
        if trial.setting is not None and trial.run.finished():
            curves = logged(trial).gold
            gold, step = peak(curves, "average")
            proxy, _ = peak(curves, "proxy")
            last = float(curves["average"][-1]), float(curves["proxy"][-1])
            found.setdefault(trial.method, []).append(
                Point(trial.setting, float(trial.clip_range), gold, step, proxy, *last)
            )
    return found


def choose(candidates: Sequence[Point]) -> Choice:
    """The best point of a method; of equal ones the first."""
    best = max(candidates, key=lambda point: point.gold)
    rates = {point.setting.lr for point in candidates}
    fractions = {point.setting.clipped for point in candidates}
    at_edge = best.setting.lr in (min(rates), max(rates)) or best.setting.clipped in (min(fractions), max(fractions))
    return Choice(best, max(candidates, key=lambda point: point.proxy), at_edge)


def best_settings(found: Mapping[str, Sequence[Point]]) -> dict[str, Setting]:
    """The best setting of each method that has a finished point."""
    return {method: choose(candidates).best.setting for method, candidates in found.items()}
