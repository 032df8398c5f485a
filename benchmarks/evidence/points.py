"""The points of a sweep: each run's gold at equal proxy.

The number that compares them is the mean gold Average over a range of proxies, each at its first crossing. The highest
gold of a run would not do: where gold falls from the start, every run has it at the base.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from guardlit_callbacks.frontier import first_crossing, values_at

from benchmarks.evidence.curves import logged
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import Setting

LEVELS = 50
"""Proxies of the range, equally spaced."""


@dataclass(frozen=True)
class Point:
    """A run of a sweep.

    Attributes:
        setting: where.
        clip_range: that clips the setting's fraction.
        frontier: mean gold Average over the range of proxies; None if the run does not reach its end.
        proxy: the highest.
    """

    setting: Setting
    clip_range: float
    frontier: float | None
    proxy: float


def points(trials: Iterable[Trial], compared: tuple[float, float]) -> dict[str, list[Point]]:
    """The points of finished trials, by method; gold counts between the proxies `compared`."""
    found: dict[str, list[Point]] = {}
    for trial in trials:
        if trial.setting is not None:
            found.setdefault(trial.method, []).append(_point(trial, trial.setting, compared))
    return found


def _point(trial: Trial, setting: Setting, compared: tuple[float, float]) -> Point:
    gold = logged(trial).gold
    frontier = mean_gold(gold["proxy"], gold["average"], compared)
    return Point(setting, float(trial.clip_range), frontier, float(np.nanmax(gold["proxy"])))


def mean_gold(proxy: np.ndarray, gold: np.ndarray, compared: tuple[float, float]) -> float | None:
    """Mean gold over a range of proxies; None where its end is not reached.

    Args:
        proxy: (T,) over evaluations.
        gold: (T,).
        compared: the range, above the first proxy.
    """
    levels = np.linspace(*compared, LEVELS)[None]
    found = values_at(gold[None], first_crossing(proxy[None], levels))
    return None if np.isnan(found).any() else float(found.mean())
