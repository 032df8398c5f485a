"""Gold at equal values of an axis, of every method and relative to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from guardlit_callbacks.frontier.intervals import Estimate, Sampling, estimates
from guardlit_callbacks.frontier.levels import automatic_levels, common_range, matched_levels
from guardlit_callbacks.frontier.paths import STEP
from guardlit_callbacks.frontier.resampled import Resampled
from guardlit_callbacks.frontier.results import AxisTable, Row
from guardlit_callbacks.tools.statistics import Array

CELLS = 100
"""Parts of the range over which gold is averaged."""

Values = Mapping[str, Mapping[str, Array]]
"""Method -> score or "step" -> (1 + B, seeds, L), or (1, seeds, L) without resamples of the prompts."""


class Comparison(NamedTuple):
    """What methods are compared with, and how.

    Attributes:
        baseline: label of the method.
        seeds: method -> its runs' names.
        sampling: of the intervals.
    """

    baseline: str
    seeds: Mapping[str, Sequence[str]]
    sampling: Sampling


def axis_table(data: Resampled, axis: str, levels: Sequence[float] | None, comparison: Comparison) -> AxisTable:
    """The rows of an axis that every run has; levels are chosen if not given."""
    low, high = common_range(data.runs, axis)
    if levels is not None:
        chosen = np.unique(np.array(levels, dtype=np.float64))
    elif axis == STEP:
        chosen = np.array([high])[np.isfinite([high])]
    else:
        chosen = automatic_levels(low, high)
    matched = matched_levels(data.runs, axis, chosen)
    at_levels = {label: [run.at(axis, matched) for run in runs] for label, runs in data.methods.items()}
    means = [] if axis == STEP or not high > low else _rows(_means(data, axis, low, high), [None], comparison)
    return AxisTable(axis, low, high, tuple(_rows(_stacked(at_levels), chosen.tolist(), comparison)), tuple(means))


def _means(data: Resampled, axis: str, low: float, high: float) -> Values:
    """The mean of each score over the part of the range that all runs cross in a resample."""
    cells = low + (high - low) * (np.arange(CELLS) + 0.5) / CELLS
    matched = matched_levels(data.runs, axis, cells)
    found = {label: [run.at(axis, matched) for run in runs] for label, runs in data.methods.items()}
    every = [next(iter(columns.values())) for runs in found.values() for columns in runs]
    crossed = np.logical_and.reduce([np.isfinite(values) for values in every])
    count = crossed.sum(axis=1, keepdims=True)

    def mean(values: Array) -> Array:
        total: Array = np.where(crossed, values, 0.0).sum(axis=1, keepdims=True) / np.where(count > 0, count, np.nan)
        return total

    averaged = {
        label: [{name: mean(values) for name, values in columns.items() if name != STEP} for columns in runs]
        for label, runs in found.items()
    }
    return _stacked(averaged)


def _stacked(found: Mapping[str, Sequence[Mapping[str, Array]]]) -> Values:
    """The columns of each method's runs as one array."""
    return {
        label: {name: np.stack([columns[name] for columns in runs], axis=1) for name in runs[0]}
        for label, runs in found.items()
    }


def _rows(values: Values, levels: Sequence[float | None], comparison: Comparison) -> list[Row]:
    """A row for each level and method."""
    per_method = []
    for label, columns in values.items():
        names = [name for name in columns if name != STEP]
        scores = {name: estimates([columns[name]], comparison.sampling) for name in names}
        apart = {name: _difference(values, label, name, comparison) for name in names if label != comparison.baseline}
        steps = columns[STEP][0].mean(axis=0) if STEP in columns else np.full(len(levels), np.nan)
        per_method.append((label, steps, scores, apart))
    return [
        Row(label, level, float(steps[k]), {n: e[k] for n, e in scores.items()}, {n: e[k] for n, e in apart.items()})
        for k, level in enumerate(levels)
        for label, steps, scores, apart in per_method
    ]


def _difference(values: Values, label: str, score: str, comparison: Comparison) -> list[Estimate]:
    """A score of a method minus the baseline's; of equal seeds the differences seed by seed."""
    ours, theirs = values[label][score], values[comparison.baseline][score]
    names, other = list(comparison.seeds[label]), list(comparison.seeds[comparison.baseline])
    if len(set(names)) == len(names) and sorted(names) == sorted(other):
        return estimates([ours - theirs[:, [other.index(name) for name in names]]], comparison.sampling)
    return estimates([ours, -theirs], comparison.sampling)
