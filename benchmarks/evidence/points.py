"""Runs of a setting as one point: its gold at equal proxy, its peak and its end.

The number that compares settings is the mean gold Average over a range of proxies, each at its first crossing. The
highest gold of a run would not do: where gold falls from the start, every run has it at the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from guardlit_callbacks.frontier import first_crossing, values_at

from benchmarks.evidence.curves import Array, logged, peak
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import Setting

LEVELS = 50
"""Proxies of the range, equally spaced."""


@dataclass(frozen=True)
class Point:
    """A method at a setting; means over its seeds.

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


def points(trials: Iterable[Trial], compared: tuple[float, float]) -> dict[str, list[Point]]:
    """The points of finished trials, by method; gold counts between the proxies `compared`."""
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
