"""Curves over training, of one run or averaged over several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guardlit_callbacks.figures import Band
from guardlit_callbacks.report.data import Series

MAX_POINTS = 200
"""Of a training curve: a page of a long run stays small, and its noise readable."""


def band(runs: Sequence[Series]) -> Band | None:
    """Mean and range over runs, at every step any of them has within the steps that all of them cover.

    Values in between are interpolated; with steps in common, as seeds have, none is. None where there is no such step.
    """
    if not runs:
        return None
    first, last = max(s.step[0] for s in runs), min(s.step[-1] for s in runs)
    steps = np.unique(np.concatenate([s.step for s in runs]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not steps.size:
        return None
    values = np.stack([np.interp(steps, s.step, s.value) for s in runs])
    return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(runs))


def thinned(curve: Band) -> Band:
    """The curve at `MAX_POINTS` steps at most, each the average of its neighbourhood."""
    parts = np.array_split(np.arange(curve.step.size), min(MAX_POINTS, curve.step.size))
    step, mean, low, high = (
        np.array([values[part].mean() for part in parts]) for values in (curve.step, curve.mean, curve.low, curve.high)
    )
    return Band(step, mean, low, high, curve.runs)
