"""A method's curve in the plane of gold and proxy or distance, as the figure shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from guardlit_callbacks.frontier.paths import AVERAGE, PROXY, SQRT_KL, MethodPaths
from guardlit_callbacks.frontier.summaries import common_steps
from guardlit_callbacks.tools.statistics import Array


@dataclass(frozen=True)
class Curve:
    """The paths of a method's S runs at T common evaluations.

    Attributes:
        step: (T,).
        gold: the Average, (S, T).
        axes: "proxy" and "sqrt_kl", those that all runs have, (S, T) each; NaN where there is no value.
    """

    step: Array
    gold: Array
    axes: Mapping[str, Array]

    @property
    def best(self) -> int:
        """The over-optimization point: the evaluation of the best Average, mean over runs."""
        return int(np.argmax(self.gold.mean(axis=0)))


def curve(method: MethodPaths) -> Curve | None:
    """The curve of a method at every step of any of its runs; None if their steps do not overlap.

    Values between a run's evaluations are interpolated by step; seeds have their steps in common.
    """
    steps = common_steps([run.step for run in method.runs])
    if not steps.size:
        return None
    axes = {}
    for axis in (PROXY, SQRT_KL):
        values = [(run.step, found) for run in method.runs if (found := run.axis(axis)) is not None]
        if len(values) == len(method.runs):
            axes[axis] = np.stack([_between(steps, *pair) for pair in values])
    gold = np.stack([np.interp(steps, run.step, run.gold[AVERAGE]) for run in method.runs])
    return Curve(steps, gold, axes)


def _between(steps: Array, at: Array, values: Array) -> Array:
    known = np.isfinite(values)
    found: Array = np.interp(steps, at[known], values[known], left=np.nan, right=np.nan)
    return found
