"""What the frontier's analysis finds, as plain data."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guardlit_callbacks.frontier.intervals import Estimate

COLUMNS = ("axis", "level", "method", "baseline", "step", "score", "value", "low", "high", "by_seed", "difference",
           "difference_low", "difference_high", "difference_by_seed")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A method at one level of an axis, or its mean over the axis' range.

    Attributes:
        method: its label.
        level: on the axis, in its unit; None for the mean over the range.
        step: optimizer step at which the level is first crossed, mean over seeds; NaN for the mean over the range.
        scores: `average` and each gold score; NaN where a seed never crosses the level.
        differences: the same minus the baseline's, paired by prompts and, where both methods have the same seeds, by
            seed; empty for the baseline.
    """

    method: str
    level: float | None
    step: float
    scores: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class AxisTable:
    """Gold at equal values of an axis.

    Attributes:
        axis: "proxy", "sqrt_kl" or "step".
        low: start of the range that all runs cover; NaN without one.
        high: its end.
        levels: rows by level, in rising order, and by method.
        means: a row a method: the mean of gold over the range, which is the area below its curve / width; its
            difference is the area between the curves / width. Empty for "step".
    """

    axis: str
    low: float
    high: float
    levels: tuple[Row, ...]
    means: tuple[Row, ...]


@dataclass(frozen=True)
class Point:
    """An evaluation of a method: means over seeds; `proxy` and `sqrt_kl` are NaN if absent."""

    step: float
    proxy: float
    sqrt_kl: float
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class MethodSummary:
    """The over-optimization point of a method.

    Attributes:
        label: of the method.
        seeds: its runs' names.
        best: where the Average is highest, mean over seeds; a maximum of noisy values, so slightly too high.
        last: the last evaluation that all seeds have.
        drop: the Average at `best` minus that at `last`, paired by prompts and seeds.
    """

    label: str
    seeds: tuple[str, ...]
    best: Point
    last: Point
    drop: Estimate


@dataclass(frozen=True)
class Frontier:
    """Gold against proxy, distance and steps, of several methods.

    Attributes:
        baseline: method that the others are compared with.
        methods: a summary of each.
        axes: "proxy", "sqrt_kl" and "step", without those that a run lacks.
        prompts: number of prompts that the intervals resample; None if they are over seeds only.
        resamples: of the intervals.
        seed: of the resampling.
        confidence: coverage of the intervals.
        lower_is_better: scores of which less is better.
        notes: what is missing and why, one sentence each.
    """

    baseline: str
    methods: tuple[MethodSummary, ...]
    axes: Mapping[str, AxisTable]
    prompts: int | None
    resamples: int
    seed: int
    confidence: float
    lower_is_better: tuple[str, ...]
    notes: tuple[str, ...]


def as_json(result: Any) -> Any:
    """A dataclass of this module as what `json.dump` takes; null for NaN."""
    return _plain(asdict(result))


def rows(frontier: Frontier) -> Iterator[dict[str, Any]]:
    """Every row and score of a frontier's tables, with the keys of `COLUMNS`; None for NaN."""
    for table in frontier.axes.values():
        for row in (*table.levels, *table.means):
            level = f"mean of {table.low:g} to {table.high:g}" if row.level is None else row.level
            for name, score in row.scores.items():
                difference = row.differences.get(name, Estimate(math.nan, math.nan, math.nan))
                cells = [table.axis, level, row.method, frontier.baseline, row.step, name, *_cells(score)]
                yield dict(zip(COLUMNS, map(_plain, [*cells, *_cells(difference)]), strict=True))


def write(frontier: Frontier, folder: Path) -> None:
    """Writes `frontier.json`, all of it, and `frontier.csv`, its tables."""
    text = json.dumps(as_json(frontier), indent=1, allow_nan=False)
    (folder / "frontier.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "frontier.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(frontier))


def _cells(estimate: Estimate) -> list[Any]:
    return [estimate.value, estimate.low, estimate.high, " ".join(f"{value:.6g}" for value in estimate.by_seed)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
