"""The path of a run: its proxy, gold scores and distance from the base over training, read from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guardlit_callbacks.frontier.average import Average
from guardlit_callbacks.tools.run_files import (
    Columns,
    ReportError,
    column,
    join_tables,
    last_file,
    read_arrays,
    read_json,
    read_table,
    read_yaml,
)
from guardlit_callbacks.tools.statistics import Array

AVERAGE, PROXY, STEP, SQRT_KL = "average", "proxy", "step", "sqrt_kl"
NOT_SCORES = (STEP, PROXY, "proxy_std", AVERAGE, "average_low", "average_high")
TOLERANCE = 1e-6
"""Largest relative difference of an Average that is computed again from the scores by prompt."""


@dataclass(frozen=True)
class PromptScores:
    """Scores of each prompt at each evaluation.

    Attributes:
        prompts: (P,).
        scores: each gold score, (T, P).
        proxy: (T, P), NaN where it failed; None if absent.
        average: how the Average follows from the scores.
    """

    prompts: tuple[str, ...]
    scores: Mapping[str, Array]
    proxy: Array | None
    average: Average


@dataclass(frozen=True)
class GoldPath:
    """One run over training; its evaluations are points of a path.

    Attributes:
        name: of the run, as "seed 42"; runs of two methods with the same names are paired.
        step: optimizer step of each evaluation, (T,).
        gold: `average`, 1 = as good as the base, and each gold score in its own unit; (T,) each.
        proxy: mean proxy reward, (T,); None if absent.
        sqrt_kl: square root of the KL divergence from the base, (T,), NaN where it was not measured; None if absent.
        by_prompt: scores of each prompt; None if unknown.
        why_not: why `by_prompt` is None.
        lower_is_better: scores of which less is better.
    """

    name: str
    step: Array
    gold: Mapping[str, Array]
    proxy: Array | None = None
    sqrt_kl: Array | None = None
    by_prompt: PromptScores | None = None
    why_not: str = ""
    lower_is_better: tuple[str, ...] = ()

    def axis(self, name: str) -> Array | None:
        """The observed values of "proxy", "sqrt_kl" or "step", (T,); None without at least one."""
        values: Array | None = getattr(self, name)
        return None if values is None or not np.isfinite(values).any() else values


@dataclass(frozen=True)
class MethodPaths:
    """The runs of one method, which differ only in their seeds.

    Attributes:
        label: its name.
        runs: at least one.
    """

    label: str
    runs: tuple[GoldPath, ...] = field(default_factory=tuple)

    @property
    def seeds(self) -> tuple[str, ...]:
        """The runs' names."""
        return tuple(run.name for run in self.runs)


def read_path(folders: str | Path | Sequence[Path], name: str = "") -> GoldPath:
    """Reads a run's folder.

    It reads `gold.csv` and `gold/step_SSSSSSSS.npz` (`GoldScore`), and `kl.csv` (`KLFromBase`) if there is one.

    Args:
        folders: the folder, or those of a run that was resumed in another folder, in the order of time.
        name: of the run; by default the last folder's.

    Raises:
        ReportError: no folder has a `gold.csv` with an Average; a file cannot be read.
    """
    places = [Path(folders)] if isinstance(folders, (str, Path)) else list(folders)
    table = join_tables([read_table(folder / "gold.csv") for folder in places])
    if AVERAGE not in table:
        raise ReportError(f"run {places[-1]} has no gold.csv with a column 'average', which GoldScore writes")
    table = {key: values[np.isfinite(table[AVERAGE])] for key, values in table.items()}
    if not table[AVERAGE].size:
        raise ReportError(f"run {places[-1]} has a gold.csv without a single evaluation")
    gold = {AVERAGE: table[AVERAGE]} | {key: values for key, values in table.items() if key not in NOT_SCORES}
    average = _definition(places, [key for key in gold if key != AVERAGE])
    by_prompt, why_not = _by_prompt(places, table, average)
    return GoldPath(
        name=name or places[-1].name,
        step=table[STEP].astype(int),
        gold=gold,
        proxy=table.get(PROXY),
        sqrt_kl=_distance(places, table[STEP]),
        by_prompt=by_prompt,
        why_not=why_not,
        lower_is_better=average.lower_is_better,
    )


def _definition(folders: Sequence[Path], scores: Sequence[str]) -> Average:
    """What the Average is made of: by `gold.json`, or else by the `GoldScore` of `config.yaml`, or else all scores."""
    if path := last_file(folders, "gold.json"):
        found: Mapping[str, Any] = read_json(path)
    else:
        config = last_file(folders, "config.yaml")
        trainer = (read_yaml(config) if config else {}).get("trainer") or {}
        callbacks = [c for c in trainer.get("callbacks") or [] if isinstance(c, Mapping)]
        found = next(
            (c.get("init_args") or {} for c in callbacks if str(c.get("class_path")).endswith("GoldScore")), {}
        )
    return Average(
        tuple(found.get("average") or scores), tuple(found.get("lower_is_better") or ()), found.get("base") or None
    )


def _distance(folders: Sequence[Path], steps: Array) -> Array | None:
    """The column `sqrt_from_base` of `kl.csv` at the given steps, (T,)."""
    table = join_tables([read_table(folder / "kl.csv") for folder in folders])
    if "sqrt_from_base" not in table:
        return None
    found = dict(zip(table[STEP].tolist(), column(table, "sqrt_from_base").tolist(), strict=True))
    return np.array([found.get(step, np.nan) for step in steps.tolist()])


def _by_prompt(folders: Sequence[Path], table: Columns, average: Average) -> tuple[PromptScores | None, str]:
    """The scores of each prompt, or why they cannot be used."""
    names = [f"gold/step_{int(step):08d}.npz" for step in table[STEP]]
    paths = [last_file(folders, name) for name in names]
    if None in paths:
        return None, f"it has no {names[paths.index(None)]}"
    arrays = [read_arrays(path) for path in paths if path]
    prompts = [tuple(map(str, found.get("prompt", ()))) for found in arrays]
    if len(set(prompts)) != 1 or not prompts[0]:
        return None, "its evaluations have different prompts"
    columns = [key for key in arrays[0] if key != "prompt" and all(key in found for found in arrays)]
    scores = {key: np.stack([found[key] for found in arrays]).astype(np.float64) for key in columns}
    proxy = scores.pop(PROXY, None)
    if missing := [name for name in average.names if name not in scores]:
        return None, f"{names[0]} has no scores of {missing[0]!r}"
    found = average.of({key: values.mean(axis=1, keepdims=True) for key, values in scores.items()})[:, 0]
    if not np.allclose(found, table[AVERAGE], rtol=TOLERANCE, atol=0):
        return None, "its Average is not that of its scores by prompt, so that its definition is unknown"
    return PromptScores(prompts[0], scores, proxy, average), ""
