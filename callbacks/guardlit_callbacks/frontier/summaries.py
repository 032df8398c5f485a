"""The over-optimization point of each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from guardlit_callbacks.frontier.intervals import Sampling, estimates
from guardlit_callbacks.frontier.paths import AVERAGE, PROXY, SQRT_KL, STEP
from guardlit_callbacks.frontier.resampled import ResampledPath
from guardlit_callbacks.frontier.results import MethodSummary, Point
from guardlit_callbacks.tools.statistics import Array


def common_steps(steps: Sequence[Array]) -> Array:
    """Every step of any run within those that all runs cover; empty if they do not overlap."""
    first, last = max(s[0] for s in steps), min(s[-1] for s in steps)
    union = np.unique(np.concatenate(list(steps)))
    within: Array = union[(union >= first) & (union <= last)]
    return within


def summary(label: str, runs: Sequence[ResampledPath], sampling: Sampling) -> MethodSummary | None:
    """The best and the last evaluation of a method; None if its runs have no steps in common."""
    steps = common_steps([run.path.step for run in runs]).astype(np.float64)
    if not steps.size:
        return None
    found = [run.at(STEP, steps[None]) for run in runs]
    scores = {name: np.stack([f[name] for f in found], axis=1) for name in found[0] if name != STEP}
    average = scores[AVERAGE]
    best = int(np.argmax(average[0].mean(axis=0)))
    (drop,) = estimates([average[:, :, [best]] - average[:, :, [-1]]], sampling)
    at_best, at_last = (_point(runs, steps, scores, place, sampling) for place in (best, steps.size - 1))
    return MethodSummary(label, tuple(run.path.name for run in runs), at_best, at_last, drop)


def _point(
    runs: Sequence[ResampledPath], steps: Array, scores: Mapping[str, Array], place: int, sampling: Sampling
) -> Point:
    found = {name: estimates([values[:, :, [place]]], sampling)[0] for name, values in scores.items()}
    axes = [float(np.mean([_observed(run, axis, steps[place]) for run in runs])) for axis in (PROXY, SQRT_KL)]
    return Point(float(steps[place]), axes[0], axes[1], found)


def _observed(run: ResampledPath, axis: str, step: float) -> float:
    """A run's value of an axis at a step, between evaluations that have one."""
    values = run.path.axis(axis)
    if values is None:
        return np.nan
    known = np.isfinite(values)
    return float(np.interp(step, run.path.step[known], values[known], left=np.nan, right=np.nan))
