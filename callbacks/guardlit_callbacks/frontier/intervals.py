"""Estimates with intervals over seeds and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guardlit_callbacks.tools.statistics import Array

MOST_MISSING = 0.1
"""Of the resamples, the fraction that may lack a value; with more an estimate has no interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval.

    Attributes:
        value: NaN if a seed has none.
        low: lower end of the interval; NaN without one.
        high: its upper end.
        by_seed: each seed's value; empty for a difference of methods with other seeds.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How intervals are computed.

    Attributes:
        resamples: number of them.
        seed: of all random numbers; the same seed gives the same intervals.
        confidence: coverage of the intervals.
    """

    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95


def estimates(groups: Sequence[Array], sampling: Sampling) -> list[Estimate]:
    """The sum over groups of the mean over seeds, with its interval, for each of L quantities.

    The interval has two parts. Prompts are resampled: the values of each resample are given. Seeds are few, and three
    seeds that are resampled never leave their own range, which covers their mean in 75 % of all cases instead of 95 %.
    So each resample adds s / sqrt(n) times a number drawn from Student's t distribution with n - 1 degrees of freedom,
    where s is the standard deviation of the n seeds: the t interval of the mean, where prompts do not matter. A single
    seed adds nothing, and the interval is over prompts only.

    Args:
        groups: values of independent groups of seeds, (1 + B, n, L) each, B resamples of the prompts after the data
            themselves; or (1, n, L) without resamples. Paired seeds are one group, of their differences.
        sampling: number of draws, where there are no resamples, seed and coverage.
    """
    value = np.sum([group[0].mean(axis=0) for group in groups], axis=0)
    draws = np.zeros((max(1, max(len(group) for group in groups) - 1), value.size))
    noisy = False
    for k, group in enumerate(groups):
        means = (group[1:] if len(group) > 1 else group).mean(axis=1)
        seeds = group.shape[1]
        if seeds > 1:
            count = len(draws) if len(draws) > 1 else sampling.resamples
            t = np.random.default_rng([sampling.seed, k]).standard_t(seeds - 1, size=(count, 1))
            means = means + t * group[0].std(axis=0, ddof=1) / np.sqrt(seeds)
        noisy |= seeds > 1 or len(group) > 1
        draws = draws + means
    low, high = _ends(draws if noisy else np.full((1, value.size), np.nan), value, sampling.confidence)
    by_seed = groups[0][0].T if len(groups) == 1 else np.zeros((value.size, 0))
    return [
        Estimate(float(v), float(a), float(b), tuple(map(float, seeds)))
        for v, a, b, seeds in zip(value, low, high, by_seed, strict=True)
    ]


def _ends(draws: Array, value: Array, confidence: float) -> tuple[Array, Array]:
    """Percentiles of (B, L) draws without NaN; NaN where too many are missing or there is no value."""
    usable = np.isfinite(value) & (np.isnan(draws).mean(axis=0) <= MOST_MISSING)
    ends = np.full((2, value.size), np.nan)
    if usable.any():
        ends[:, usable] = np.nanquantile(draws[:, usable], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return ends[0], ends[1]
