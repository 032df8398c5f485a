"""Means, differences and the Average of a table, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from guardlit_callbacks import composite
from numpy.typing import NDArray

Array = NDArray[np.float64]
Number = TypeVar("Number", float, Array)

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number of the table.

    Attributes:
        value: of all prompts.
        low: end of its bootstrap interval.
        high: the other end.
        difference: to the base model's value.
        difference_low: end of the difference's interval, over the same resamples of prompts for both models.
        difference_high: the other end.
    """

    value: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Column:
    """How a metric is computed from scores.

    Attributes:
        scorer: whose scores, by column.
        weights: of the prompts, (P,): 1 / P for a mean over prompts, 1 / (tasks x prompts of the task) for a mean of
            task means, 1 / prompts of the task and 0 elsewhere for one task's mean.
    """

    scorer: str
    weights: Array


def columns_of(scorer: str, tasks: Sequence[str | None]) -> dict[str, Column]:
    """A scorer's metrics by name: its overall score and, if its prompts have tasks, `scorer/task` for each of them."""
    named = list(dict.fromkeys(tasks))
    members = {task: np.array([float(t == task) for t in tasks]) for task in named}
    means = {task: member / member.sum() for task, member in members.items()}
    overall = {scorer: Column(scorer, np.asarray(np.mean(list(means.values()), axis=0)))}
    if named == [None]:
        return overall
    return overall | {f"{scorer}/{task}": Column(scorer, weights) for task, weights in means.items()}


class Bootstrap:
    """Resamples of prompts, the same for all models and metrics.

    Prompts are drawn with replacement, within each stratum as many as it has: the number of a task's prompts is the
    benchmark's choice, not chance.

    Args:
        strata: of each prompt, P of them.
        n: resamples.
        seed: of the drawing.
    """

    def __init__(self, strata: Sequence[object], n: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._times = np.zeros((n, len(strata)))  # how often a resample has a prompt
        for stratum in dict.fromkeys(strata):
            rows = np.flatnonzero([other == stratum for other in strata])
            drawn = generator.integers(len(rows), size=(n, len(rows))) + len(rows) * np.arange(n)[:, None]
            self._times[:, rows] = np.bincount(drawn.ravel(), minlength=n * len(rows)).reshape(n, len(rows))

    def means(self, scores: Array, weights: Array) -> Array:
        """Weighted means of scores (P,) in every resample, (n,)."""
        return self._times @ (weights * scores)


def estimates(
    models: Sequence[Mapping[str, Array]],
    columns: Mapping[str, Column],
    bootstrap: Bootstrap,
) -> list[dict[str, Estimate]]:
    """Every metric of every model.

    Args:
        models: scores by scorer, (P,) each, the base model's first.
        columns: by name.
        bootstrap: over the same prompts.
    """
    table: list[dict[str, Estimate]] = [{} for _ in models]
    for name, column in columns.items():
        values = [float(column.weights @ scores[column.scorer]) for scores in models]
        resampled = [bootstrap.means(scores[column.scorer], column.weights) for scores in models]
        for row, value, means in zip(table, values, resampled, strict=True):
            row[name] = _estimate(value, means, value - values[0], means - resampled[0])
    return table


def averages(
    models: Sequence[Mapping[str, Array]],
    columns: Mapping[str, Column],
    lower_is_better: Sequence[str],
    bootstrap: Bootstrap,
) -> list[Estimate]:
    """The Average of every model: the mean over `columns` of score / base, or of base / score.

    Raises:
        ValueError: a mean that is not positive cannot be divided by, of all prompts or of a resample of them.
    """
    resampled = [{n: bootstrap.means(m[c.scorer], c.weights) for n, c in columns.items()} for m in models]
    values = [{n: float(c.weights @ m[c.scorer]) for n, c in columns.items()} for m in models]
    found = []
    for value, means in zip(values, resampled, strict=True):
        numerators, denominators = _fractions(value, values[0], lower_is_better)
        average = composite(numerators, denominators)
        numerators_n, denominators_n = _fractions(means, resampled[0], lower_is_better)
        for name, divisor in denominators_n.items():
            if not (divisor > 0).all():
                raise ValueError(f"{name!r} is too close to 0 to divide by: in some resamples its mean is not positive")
        ratios = np.asarray(np.mean([numerators_n[name] / denominators_n[name] for name in columns], axis=0))
        found.append(_estimate(average, ratios, average - 1, ratios - 1))
    return found


def _fractions(
    model: Mapping[str, Number], base: Mapping[str, Number], lower_is_better: Sequence[str]
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Numerators and denominators of the ratios."""
    numerators = {name: (base if name in lower_is_better else model)[name] for name in model}
    denominators = {name: (model if name in lower_is_better else base)[name] for name in model}
    return numerators, denominators


def _estimate(value: float, means: Array, difference: float, differences: Array) -> Estimate:
    low, high = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    interval = (float(np.quantile(means, low)), float(np.quantile(means, high)))
    return Estimate(
        value, *interval, difference, float(np.quantile(differences, low)), float(np.quantile(differences, high))
    )
