"""The Average of gold scores, as `GoldScore` computes it, of many resamples at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from guardlit_callbacks.tools.statistics import Array


@dataclass(frozen=True)
class Average:
    """What the Average is made of: the mean over scores of score / base, or base / score where less is better.

    Attributes:
        names: of the scores in it.
        lower_is_better: those that enter as base / score.
        base: the base's mean of each score; None for the first evaluation's.
    """

    names: tuple[str, ...]
    lower_is_better: tuple[str, ...] = ()
    base: Mapping[str, float] | None = None

    def of(self, means: Mapping[str, Array]) -> Array:
        """The Average of means of each score, (T, B) each, where the first evaluation is the base; (T, B).

        NaN where a base is not positive: score / base has no meaning there.
        """
        total = np.zeros(1)
        for name in self.names:
            now = means[name]
            base = now[:1] if self.base is None else np.full_like(now[:1], self.base[name])
            above, below = (base, now) if name in self.lower_is_better else (now, base)
            total = total + np.divide(above, below, out=np.full(now.shape, np.nan), where=below > 0)
        average: Array = total / len(self.names)
        return average


def prompt_weights(prompts: int, resamples: int, seed: int) -> Array:
    """How often each prompt is in each resample, (1 + resamples, prompts); the first row is the data themselves.

    The resamples are those of `guardlit_callbacks.bootstrap` with the same seed.
    """
    rows = np.random.default_rng(seed).integers(prompts, size=(resamples, prompts))
    places = rows + prompts * np.arange(resamples)[:, None]
    counts = np.bincount(places.ravel(), minlength=resamples * prompts).reshape(resamples, prompts)
    return np.concatenate([np.ones((1, prompts)), counts])


def weighted_means(values: Array, weights: Array) -> Array:
    """Mean over prompts of (T, P) values in each resample, (T, B), without NaN."""
    known = np.isfinite(values)
    count = known.astype(np.float64) @ weights.T
    mean: Array = (np.where(known, values, 0.0) @ weights.T) / np.where(count > 0, count, np.nan)
    return mean
