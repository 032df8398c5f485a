"""Levels of an axis: the same in every resample of the prompts, and the range that all runs cover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from guardlit_callbacks.frontier.crossing import first_crossing, values_at
from guardlit_callbacks.frontier.intervals import MOST_MISSING
from guardlit_callbacks.frontier.resampled import ResampledPath
from guardlit_callbacks.tools.statistics import Array

LEVELS = 5
CELLS = 100


def matched_levels(runs: Sequence[ResampledPath], axis: str, levels: Array) -> Array:
    """The levels in every resample of the prompts, (1 + B, L), or (1, L) for an axis that is not resampled.

    Some prompts have a higher proxy than others, before training already. So a level of the data is, in a resample, the
    resample's mean proxy of the very evaluations at which the runs cross the level in the data, mean over runs: as high
    a level for easy prompts as for hard ones, and equal for all runs.

    Args:
        runs: of all methods.
        axis: which all runs have.
        levels: of the data, (L,).
    """
    paths = [run.axis(axis) for run in runs]
    if all(len(x) == 1 for x in paths):
        return levels[None]
    found = np.stack([values_at(x, first_crossing(x[:1], levels[None])) for x in paths])
    crossed = np.isfinite(found)
    count = np.where(crossed.any(axis=0), crossed.sum(axis=0), np.nan)
    matched: Array = np.where(crossed, found, 0.0).sum(axis=0) / count
    matched[0] = levels
    return matched


def common_range(runs: Sequence[ResampledPath], axis: str) -> tuple[float, float]:
    """From the highest start to the highest level that all runs cross, in most resamples too; NaN for none."""
    paths = [run.axis(axis) for run in runs]
    low = max(float(x[0][np.isfinite(x[0])][0]) for x in paths)
    high = min(float(np.nanmax(x[0])) for x in paths)
    if not high > low:
        return np.nan, np.nan
    levels = low + (high - low) * np.arange(1, CELLS + 1) / CELLS
    matched = matched_levels(runs, axis, levels)
    if len(matched) > 1:
        crossed = np.logical_and.reduce([np.fmax.reduce(x, axis=1)[:, None] >= matched for x in paths])
        rare = np.flatnonzero(crossed[1:].mean(axis=0) < 1 - MOST_MISSING)
        high = float(levels[rare[0] - 1]) if rare.size else high
        return (low, high) if not rare.size or rare[0] else (np.nan, np.nan)
    return low, high


def automatic_levels(low: float, high: float) -> Array:
    """Five levels at equal distances up to `high`, rounded down; none without a range."""
    if not high > low:
        return np.zeros(0)
    step = (high - low) / LEVELS
    unit = 10.0 ** (np.floor(np.log10(step)) - 1)
    levels = np.floor((low + step * np.arange(1, LEVELS + 1)) / unit + 1e-9) * unit
    return np.unique(np.round(levels[levels > low], 12))
