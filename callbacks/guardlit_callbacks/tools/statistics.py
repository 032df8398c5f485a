"""Statistics per denoising step; numpy only, so that a report needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STEP_KEY = re.compile(r"/t\d+$")
"""Matches logged keys of a single denoising step."""


class Moments(NamedTuple):
    """Mean, population standard deviation and skewness (0 where the spread is 0); NaN for no values."""

    mean: float
    std: float
    skew: float

    @property
    def shift(self) -> float:
        """|mean| in standard deviations; 0 if all values are 0."""
        return abs(self.mean) / self.std if self.std else (0.0 if self.mean == 0 else float("inf"))


def moments(values: Array) -> Moments:
    """Moments of (n,) values, in float64."""
    if values.size == 0:
        return Moments(np.nan, np.nan, np.nan)
    values = values.astype(np.float64)
    mean = float(values.mean())
    centered = values - mean
    std = float(np.sqrt(np.mean(centered**2)))
    return Moments(mean, std, float(np.mean((centered / std) ** 3)) if std else 0.0)


def clip_fractions(log_ratio: Array, clipped: Array) -> tuple[float, float]:
    """Fractions of (n,) samples whose ratio is clipped above and below the range; NaN for no samples."""
    if log_ratio.size == 0:
        return np.nan, np.nan
    clipped = clipped.astype(bool)
    return float(np.mean(clipped & (log_ratio > 0))), float(np.mean(clipped & (log_ratio < 0)))


def clip_range(log_ratio: Array, clipped: Array) -> Array:
    """Ends of the clip range that (n,) samples show, (2,): halfway between the outermost kept and the first clipped.

    NaN for an end beyond which no sample lies.
    """
    ends = []
    for sign in (-1.0, 1.0):
        size = log_ratio * sign
        out, kept = size[clipped.astype(bool) & (size > 0)], size[~clipped.astype(bool) & (size > 0)]
        ends.append(sign * (out.min() + min(kept.max(initial=0.0), out.min())) / 2 if out.size else np.nan)
    return np.array(ends)


def step_index(step: Array) -> NDArray[np.int64]:
    """The index of each sample's denoising step, (n,).

    Integers are indices already. Other values are timesteps that fall during denoising, as sigma in [0, 1]: the highest
    value is step 0.
    """
    if np.all(step == np.round(step)):
        return step.astype(np.int64)
    return np.searchsorted(-np.unique(step)[::-1], -step).astype(np.int64)


def unmasked(rows: Mapping[str, Array]) -> dict[str, Array]:
    """The columns without samples whose `sample_weight` is 0, and without the weights.

    `step` becomes the steps' indices; timesteps move to `timestep`; `clipped` becomes bool.
    """
    rows = dict(rows)
    if (weight := rows.pop("sample_weight", None)) is not None:
        rows = {name: values[weight != 0] for name, values in rows.items()}
    index = step_index(rows["step"])
    if not np.array_equal(index, rows["step"]):
        rows["timestep"] = rows["step"]
    rows["step"] = index
    if "clipped" in rows:
        rows["clipped"] = rows["clipped"].astype(bool)
    return rows


def split(step: Array, values: Array) -> dict[int, Array]:
    """`values` (n,) by step, the steps in rising order."""
    return {int(t): values[step == t] for t in np.unique(step)}


def max_over_min(per_step: Mapping[int, float]) -> float:
    """Largest over smallest value of the steps; infinite where the smallest is 0, NaN for no step."""
    if not per_step:
        return np.nan
    low = min(per_step.values())
    return max(per_step.values()) / low if low > 0 else float("inf")
