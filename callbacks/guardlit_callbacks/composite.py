"""The paper's Average of several gold scores relative to the base model, and its bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A composite score and its bootstrap interval."""

    value: float
    low: float
    high: float


def composite(scores: Mapping[str, float], base: Mapping[str, float]) -> float:
    """Mean over the scorers of score / base: Table 1's Average; 1 is the base model, more is better.

    Args:
        scores: a model's mean score per scorer, as in {"hpsv2": .254, "imagereward": .87, "unifiedreward": 3.22}.
        base: the base model's, with the same names, all positive: {"hpsv2": .293, "imagereward": 1.06, ...}.

    Returns:
        The Average, here 0.887.

    Raises:
        ValueError: the names in `scores` and `base` differ, there are none, a base is not positive, or a score is not
            finite.
    """
    _check_names(scores, base)
    for name in base:
        if not base[name] > 0 or not np.isfinite(base[name]):
            found = float(f"{base[name]:.6g}")
            raise ValueError(
                f"composite: the base score of {name!r} must be a positive number, got {found}: score / base has no "
                f"meaning; leave {name!r} out of the average"
            )
        if not np.isfinite(scores[name]):
            raise ValueError(f"composite: the score of {name!r} must be a finite number, got {scores[name]}")
    return float(np.mean([scores[name] / base[name] for name in base]))


def bootstrap(
    values: Mapping[str, ArrayLike],
    base: Mapping[str, ArrayLike],
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap over prompts of the composite of means.

    Each resample draws prompts with replacement, the same ones for every scorer and, where given per prompt, for the
    base, since scores of one prompt are correlated. A resample's ratio is that of two means, never a mean of ratios.

    Args:
        values: scorer to per-prompt scores, (P,) each, in the same order of prompts.
        base: scorer to the base model's mean, a number, or its per-prompt scores (P,).
        n: resamples.
        seed: of the resampling; the same seed gives the same interval.
        level: coverage of the interval.

    Returns:
        The composite of the means, and the ends of the interval.

    Raises:
        ValueError: as `composite`; unequal numbers of prompts; a score that is not finite (failed scores are never
            dropped); a base whose mean is not positive in every resample.
    """
    _check_names(values, base)
    scores = {name: _per_prompt(name, array) for name, array in values.items()}
    sizes = {name: len(array) for name, array in scores.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"bootstrap: all scorers must have scored the same prompts, got {sizes}")
    prompts = next(iter(sizes.values()))
    bases = {name: _base(name, array, prompts) for name, array in base.items()}
    value = composite({k: float(v.mean()) for k, v in scores.items()}, {k: float(v.mean()) for k, v in bases.items()})

    rows = np.random.default_rng(seed).integers(prompts, size=(n, prompts))
    ratios = np.zeros(n)
    for name in scores:
        below = bases[name][rows].mean(axis=1)
        if not (below > 0).all():
            raise ValueError(
                f"bootstrap: the base score of {name!r} is too close to 0 to divide by: it is not positive in some "
                f"resamples of the prompts; leave {name!r} out of the average"
            )
        ratios += scores[name][rows].mean(axis=1) / below / len(scores)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _check_names(scores: Mapping[str, object], base: Mapping[str, object]) -> None:
    if not base or scores.keys() != base.keys():
        raise ValueError(
            f"composite: scores and base must name the same scorers; got {sorted(scores)} and {sorted(base)}"
        )


def _per_prompt(name: str, array: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(array, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"bootstrap: {name!r} must hold one score per prompt, got shape {scores.shape}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(f"bootstrap: {bad.size} of {scores.size} scores of {name!r} are not finite, first at {bad[0]}")
    return scores


def _base(name: str, array: ArrayLike, prompts: int) -> NDArray[np.float64]:
    """(P,); a single mean stands for every prompt."""
    if np.ndim(array) == 0:
        return np.full(prompts, float(np.asarray(array)))
    scores = _per_prompt(name, array)
    if len(scores) != prompts:
        raise ValueError(f"bootstrap: the base of {name!r} has {len(scores)} prompts, the scores {prompts}")
    return scores
