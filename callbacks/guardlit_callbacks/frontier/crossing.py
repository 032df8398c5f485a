"""Where a path first crosses a level, and the values of other quantities there."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from guardlit_callbacks.tools.statistics import Array


class Crossing(NamedTuple):
    """First crossings of L levels in B resamples.

    Attributes:
        before: index of the evaluation before the crossing, (B, L) int.
        after: index of the one after it; the same at the first evaluation.
        weight: of the evaluation after it, 0 to 1, (B, L); NaN where the level is never crossed.
    """

    before: Array
    after: Array
    weight: Array


def first_crossing(x: Array, levels: Array) -> Crossing:
    """Where x first rises to each level: the first evaluation at or above it, interpolated linearly from the last one.

    A path may turn back and cross a level several times. Only the first time counts: there a training that stops at
    this level stops. A level at or below the first evaluation is crossed there. An evaluation at which the data, row 0,
    have no value is left out.

    Args:
        x: (B, T) over evaluations.
        levels: (B, L), or (1, L) for all resamples.
    """
    known = np.flatnonzero(np.isfinite(x[0]))
    x = x[:, known]
    after = np.zeros((len(x), levels.shape[1]), dtype=np.intp)
    for highest in np.fmax.accumulate(x, axis=1).T:
        after += ~(highest[:, None] >= levels)  # NaN crosses nothing
    crossed = after < known.size
    after = np.minimum(after, known.size - 1)
    before = np.maximum(after - 1, 0)
    low, high = np.take_along_axis(x, before, axis=1), np.take_along_axis(x, after, axis=1)
    first = after == before
    weight = np.where(first, 0.0, (levels - low) / np.where(first | ~crossed, 1.0, high - low))
    return Crossing(known[before], known[after], np.where(crossed, weight, np.nan))


def values_at(values: Array, crossing: Crossing) -> Array:
    """Values (B, T) at the crossings, (B, L); either may have a single resample, which then stands for all."""
    shape = max(len(values), len(crossing.weight)), crossing.weight.shape[1]
    values = np.broadcast_to(values, (shape[0], values.shape[1]))
    low, high = (
        np.take_along_axis(values, np.broadcast_to(index, shape), axis=1) for index in (crossing.before, crossing.after)
    )
    found: Array = low + crossing.weight * (high - low)
    return found
