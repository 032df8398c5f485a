"""Runs grouped into methods: the same label is the same method, and its runs are seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from guardlit_callbacks.figures import PALETTE, Band, ProxyGoldCurve, RatioSamples, turning_point
from guardlit_callbacks.report.curves import band, thinned
from guardlit_callbacks.report.data import ReportError, Rounds, Run, Series
from guardlit_callbacks.tools.statistics import clip_fractions, max_over_min, moments, split

OBJECTIVE = ("model", "objective", "class_path")
"""Where a configuration names the method."""

SETTINGS = ("model.", "data.")
SEEDS = ("seed_everything", "data.seed")


@dataclass(frozen=True)
class Method:
    """Runs that differ in nothing but their seeds.

    Attributes:
        label: the name in every legend.
        runs: at least one.
    """

    label: str
    runs: tuple[Run, ...]

    def run_names(self) -> list[str]:
        """What tells the runs apart: their seeds, or else their folders."""
        seeds = [run.seed for run in self.runs]
        if None not in seeds and len(set(seeds)) == len(seeds):
            return [f"seed {seed}" for seed in seeds]
        return [run.name for run in self.runs]

    def gold(self, column: str) -> Band | None:
        """A column of `gold.csv` over the seeds that have it."""
        return band([series for run in self.runs if (series := gold_series(run, column))])

    def proxy_gold(self) -> ProxyGoldCurve | None:
        """Proxy and gold average over training; the interval is one run's own, or the range of several."""
        gold, proxy = self.gold("average"), self.gold("proxy")
        if gold is None:
            return None
        low, high = gold.low, gold.high
        if gold.runs == 1 and (own_low := self.gold("average_low")) and (own_high := self.gold("average_high")):
            low, high = own_low.mean, own_high.mean
        at_gold = None if proxy is None else np.interp(gold.step, proxy.step, proxy.mean)
        return ProxyGoldCurve(gold.step, at_gold, gold.mean, low, high)

    def scalar(self, key: str) -> Band | None:
        """A logged key over the seeds that have it, at `MAX_POINTS` steps at most."""
        curve = band([run.scalars[key] for run in self.runs if key in run.scalars])
        return curve and thinned(curve)

    def ratio_samples(self) -> RatioSamples | None:
        """The log ratios of all rounds and seeds together."""
        rounds = [arrays for run in self.runs for arrays in run.ratio.arrays]
        if not rounds:
            return None
        step, ratio = (np.concatenate([arrays[name] for arrays in rounds]) for name in ("step", "log_ratio"))
        clips = all("clipped" in arrays for arrays in rounds)
        clipped = np.concatenate([arrays["clipped"] for arrays in rounds]) if clips else None
        return RatioSamples(step, ratio, clipped)

    def gradient(self, kind: str) -> dict[int, float]:
        """Mean gradient norm by step, over all rounds and seeds; `kind` is "velocity" or "parameters"."""
        rounds = self._gradient_rounds(kind)
        steps = sorted({t for curve in rounds for t in curve})
        return {t: float(np.mean([curve[t] for curve in rounds if t in curve])) for t in steps}

    def gradient_spread(self, kind: str) -> float:
        """Largest over smallest mean norm of the steps, averaged over rounds and seeds; NaN where not measured."""
        spreads = [max_over_min(curve) for curve in self._gradient_rounds(kind)]
        return float(np.mean(spreads)) if spreads else np.nan

    def _gradient_rounds(self, kind: str) -> list[dict[int, float]]:
        step = "parameter_step" if kind == "parameters" else "step"
        rounds = [arrays for run in self.runs for arrays in run.gradient.arrays if kind in arrays]
        return [{t: float(v.mean()) for t, v in split(a[step], a[kind]).items()} for a in rounds if a[kind].size]


@dataclass(frozen=True)
class StepRatio:
    """What the ratios of one denoising step looked like.

    Attributes:
        pooled: mean / std of all samples of all rounds, no unit.
        by_round: mean / std of each round, averaged over the rounds in which ratios moved, no unit.
        std: of all samples, log ratio.
        above: share of samples clipped above the range, 0 to 1; NaN where nothing clips.
        below: share clipped below it.
    """

    pooled: float
    by_round: float
    std: float
    above: float
    below: float


def ratio_by_step(method: Method) -> dict[int, StepRatio]:
    """The ratio's statistics at every denoising step, over all rounds and seeds."""
    samples = method.ratio_samples()
    if samples is None:
        return {}
    shifts: dict[int, list[float]] = {}
    for arrays in (arrays for run in method.runs for arrays in run.ratio.arrays):
        for t, values in split(arrays["step"], arrays["log_ratio"]).items():
            if (m := moments(values)).std:
                shifts.setdefault(t, []).append(m.mean / m.std)
    out = {}
    for t, values in split(samples.step, samples.log_ratio).items():
        m = moments(values)
        above, below = (
            (np.nan, np.nan) if samples.clipped is None else clip_fractions(values, samples.clipped[samples.step == t])
        )
        pooled = m.mean / m.std if m.std else np.nan
        out[t] = StepRatio(pooled, float(np.mean(shifts[t])) if t in shifts else np.nan, m.std, above, below)
    return out


# --- curves over training ---------------------------------------------------------------------------------------------


def gold_series(run: Run, column: str) -> Series | None:
    """A column of a run's `gold.csv` where it has values."""
    if column not in run.gold:
        return None
    there = np.isfinite(run.gold[column])
    return Series(run.gold["step"][there].astype(int), run.gold[column][there]) if there.any() else None


# --- labels -----------------------------------------------------------------------------------------------------------


def group(runs: Sequence[Run], labels: Sequence[str]) -> list[Method]:
    """Groups runs into methods, in the order given.

    Args:
        runs: at least one.
        labels: one a run; none to take the objective of each configuration, with whatever else of the model's and the
            data's settings differs between runs of one objective, or the folder's name where nothing is configured.

    Raises:
        ReportError: as many labels as runs are needed; more methods than colours.
    """
    if labels and len(labels) != len(runs):
        raise ReportError(f"--label is given {len(labels)} times for {len(runs)} runs; give one for each, in order")
    by_label: dict[str, list[Run]] = {}
    for label, run in zip(labels or _own_labels(runs), runs, strict=True):
        by_label.setdefault(label, []).append(run)
    if len(by_label) > len(PALETTE):
        raise ReportError(
            f"{len(by_label)} methods, and a figure shows {len(PALETTE)} at most; give fewer runs, or seeds of one "
            "method the same --label"
        )
    return [Method(label, tuple(members)) for label, members in by_label.items()]


def _own_labels(runs: Sequence[Run]) -> list[str]:
    names = [_objective(run) for run in runs]
    flat = [flatten(run.config) for run in runs]
    labels = []
    for name, run, settings in zip(names, runs, flat, strict=True):
        peers = [other for other_name, other in zip(names, flat, strict=True) if other_name == name]
        own = [f"{key.rpartition('.')[2]} {settings.get(key)}" for key in _differing(peers)]
        labels.append(run.name if name is None else f"{name} ({', '.join(own)})" if own else name)
    return labels


def _objective(run: Run) -> str | None:
    found: Any = run.config
    for key in OBJECTIVE:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found.rpartition(".")[2] if isinstance(found, str) else None


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    return [key for key in differences(settings) if key.startswith(SETTINGS) and key not in SEEDS]


def differences(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys whose values are not the same everywhere."""
    settings = list(settings)
    keys = dict.fromkeys(key for mapping in settings for key in mapping)
    return [key for key in keys if len({mapping.get(key) for mapping in settings}) > 1]


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text: {"model": {"lr": 1}} -> {"model.lr": "1"}; lists count from 0."""
    if isinstance(config, Mapping) and config:
        items: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list) and config:
        items = enumerate(config)
    elif not prefix:
        return {}
    else:
        return {prefix: "null" if config is None else str(config)}
    dot = "." if prefix and not prefix.endswith(" ") else ""
    return {k: v for key, value in items for k, v in flatten(value, f"{prefix}{dot}{key}").items()}


def over_optimized_at(curve: ProxyGoldCurve) -> int | None:
    """The optimizer step of the best gold score, if what came after it was over-optimization."""
    best = turning_point(curve)
    return None if best is None else int(curve.step[best])


def rounds_read(methods: Sequence[Method], kind: str) -> tuple[int, int]:
    """Rounds that were read, and that there are, of "ratio" or "gradient"."""
    rounds: list[Rounds] = [getattr(run, kind) for method in methods for run in method.runs]
    return sum(len(r.arrays) for r in rounds), sum(r.found for r in rounds)
