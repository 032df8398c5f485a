"""Gold at equal proxy, distance and steps, and the over-optimization point, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from guardlit_callbacks.frontier.intervals import Sampling
from guardlit_callbacks.frontier.paths import PROXY, SQRT_KL, STEP, GoldPath, MethodPaths
from guardlit_callbacks.frontier.resampled import resample
from guardlit_callbacks.frontier.results import Frontier
from guardlit_callbacks.frontier.summaries import summary
from guardlit_callbacks.frontier.tables import Comparison, axis_table
from guardlit_callbacks.tools.run_files import ReportError

AXES = {PROXY: "proxy", SQRT_KL: "sqrt(KL) from the base", STEP: "steps"}
"""The axes at whose equal values gold is compared, and their names."""


def compare(
    methods: Sequence[MethodPaths],
    *,
    baseline: str = "",
    levels: Mapping[str, Sequence[float]] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Frontier:
    """Compares the gold scores of methods at equal proxy, at equal distance from the base, and at equal steps.

    A run is a path, parametrized by training. Its gold at a level of the proxy is where the proxy first crosses the
    level, interpolated linearly between two evaluations; a method's is the mean over its seeds. Intervals are over
    prompts, which are resampled jointly for all runs (the Average and the proxy are computed again from the scores by
    prompt, relative to the first evaluation), and over seeds; see `estimates`. Steps and KL are not resampled.

    Args:
        methods: at least one, with different labels and one run or more each.
        baseline: label of the method that the others are compared with; by default the first.
        levels: axis ("proxy", "sqrt_kl", "step") -> its levels. By default five in the range that all runs cover, and
            the last step that all runs have. A method of which a seed never crosses a level has no value there.
        resamples: of the prompts, and draws of the seeds' part.
        seed: of the resampling.
        confidence: coverage of the intervals.

    Raises:
        ReportError: there is no method or no run; two methods have one label; `baseline` or an axis is unknown.
    """
    levels = levels or {}
    _check(methods, baseline, levels)
    sampling = Sampling(resamples, seed, confidence)
    data = resample(methods, resamples, seed)
    comparison = Comparison(baseline or methods[0].label, {m.label: m.seeds for m in methods}, sampling)
    shown = [axis for axis in AXES if all(run.path.axis(axis) is not None for run in data.runs)]
    axes = {axis: axis_table(data, axis, levels.get(axis), comparison) for axis in shown}
    found = [summary(label, runs, sampling) for label, runs in data.methods.items()]
    return Frontier(
        baseline=comparison.baseline,
        methods=tuple(method for method in found if method),
        axes=axes,
        prompts=data.prompts,
        resamples=resamples,
        seed=seed,
        confidence=confidence,
        lower_is_better=tuple(dict.fromkeys(name for run in data.runs for name in run.path.lower_is_better)),
        notes=(*data.notes, *_notes(methods, [axis for axis, table in axes.items() if np.isfinite(table.high)])),
    )


def _check(methods: Sequence[MethodPaths], baseline: str, levels: Mapping[str, Sequence[float]]) -> None:
    labels = [method.label for method in methods]
    if not methods or not all(method.runs for method in methods):
        raise ReportError("a frontier needs at least one method, and at least one run of each")
    if len(set(labels)) < len(labels):
        raise ReportError(f"two methods have the same label among {', '.join(labels)}")
    if baseline and baseline not in labels:
        raise ReportError(f"the baseline {baseline!r} is none of the methods {', '.join(labels)}")
    if unknown := [axis for axis in levels if axis not in AXES]:
        raise ReportError(f"levels of {unknown[0]!r}: the axes are {', '.join(map(repr, AXES))}")


def _notes(methods: Sequence[MethodPaths], ranges: Sequence[str]) -> list[str]:
    """What cannot be compared, and which intervals have no part of the seeds."""
    runs = {f"{method.label}, {run.name}": run for method in methods for run in method.runs}
    notes = [_missing(runs, axis) for axis in AXES if axis not in ranges]
    alone = [method.label for method in methods if len(method.runs) == 1]
    if alone:
        notes.append(f"A single run cannot tell how much seeds differ: the intervals of {', '.join(alone)} ignore it.")
    return notes


def _missing(runs: Mapping[str, GoldPath], axis: str) -> str:
    what = f"Gold at equal {AXES[axis]} is not shown"
    values = {name: run.axis(axis) for name, run in runs.items()}
    lacking = [name for name, found in values.items() if found is None]
    if lacking:
        return f"{what}: {lacking[0]} has none{f', nor do {len(lacking) - 1} others' if len(lacking) > 1 else ''}."
    tops = {name: float(np.nanmax(found)) for name, found in values.items() if found is not None}
    lowest = min(tops, key=lambda name: tops[name])
    return f"{what}: the runs have no range in common; the highest value of {lowest} is {tops[lowest]:.4g}."
