"""The paths of runs in every resample of the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from guardlit_callbacks.frontier.average import prompt_weights, weighted_means
from guardlit_callbacks.frontier.crossing import first_crossing, values_at
from guardlit_callbacks.frontier.paths import AVERAGE, PROXY, STEP, GoldPath, MethodPaths
from guardlit_callbacks.tools.statistics import Array


@dataclass(frozen=True)
class ResampledPath:
    """A run's evaluations: first the data themselves, then the resamples of the prompts.

    Attributes:
        path: the run.
        scores: `average` and each gold score, (1 + B, T); (1, T) without scores by prompt.
        proxy: the same of the proxy; None if absent.
    """

    path: GoldPath
    scores: Mapping[str, Array]
    proxy: Array | None

    def axis(self, name: str) -> Array:
        """The values of an axis that the run has, (1 + B, T) or (1, T)."""
        values = self.path.axis(name)
        assert values is not None
        return self.proxy if name == PROXY and self.proxy is not None else values[None].astype(np.float64)

    def at(self, axis: str, levels: Array) -> dict[str, Array]:
        """Each score, and the step, where the run first crosses levels (1 + B, L) or (1, L); of the same shape."""
        crossing = first_crossing(self.axis(axis), levels)
        columns = {**self.scores, STEP: self.axis(STEP)}
        return {name: values_at(values, crossing) for name, values in columns.items()}


@dataclass(frozen=True)
class Resampled:
    """All runs, in common resamples of the prompts.

    Attributes:
        methods: the runs of each method.
        prompts: their number; None without resamples.
        notes: why there are none.
    """

    methods: Mapping[str, tuple[ResampledPath, ...]]
    prompts: int | None
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[ResampledPath]:
        """The runs of all methods."""
        return [run for runs in self.methods.values() for run in runs]


def resample(methods: Sequence[MethodPaths], resamples: int, seed: int) -> Resampled:
    """Resamples the prompts jointly for all runs, if all runs have scores by prompt of the same prompts."""
    runs = [(f"{method.label}, {run.name}", run) for method in methods for run in method.runs]
    names = _common([run.gold for _, run in runs])
    note = _why_not(runs)
    weights = None
    if not note and (first := runs[0][1].by_prompt):
        weights = prompt_weights(len(first.prompts), resamples, seed)
    found = {method.label: tuple(_resampled(run, names, weights) for run in method.runs) for method in methods}
    return Resampled(found, None if weights is None else weights.shape[1], (note,) if note else ())


def _common(scores: Sequence[Mapping[str, Array]]) -> list[str]:
    """Names that all runs have, in the order of the first."""
    return [name for name in scores[0] if all(name in other for other in scores)]


def _why_not(runs: Sequence[tuple[str, GoldPath]]) -> str:
    """Why prompts cannot be resampled, in one sentence; empty if they can."""
    for name, run in runs:
        if run.by_prompt is None:
            return (
                f"Intervals are over seeds only, not over prompts: of {name}, {run.why_not or 'no scores by prompt'}."
            )
    prompts = [run.by_prompt.prompts for _, run in runs if run.by_prompt]
    if len(set(prompts)) > 1:
        return "Intervals are over seeds only, not over prompts: the runs were evaluated on different prompts."
    if len(prompts[0]) < 2:
        return "Intervals are over seeds only: there is a single prompt."
    return ""


def _resampled(run: GoldPath, names: Sequence[str], weights: Array | None) -> ResampledPath:
    if weights is None or run.by_prompt is None:
        proxy = None if run.proxy is None else run.proxy[None]
        return ResampledPath(run, {name: run.gold[name][None] for name in names}, proxy)
    by_prompt = run.by_prompt
    means = {name: weighted_means(values, weights) for name, values in by_prompt.scores.items()}
    means[AVERAGE] = by_prompt.average.of(means)
    proxy = None if by_prompt.proxy is None else weighted_means(by_prompt.proxy, weights).T
    return ResampledPath(run, {name: means[name].T for name in names}, proxy)
