"""Statistics and curves of a method over its runs, which are seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from guardlit_callbacks.figures import Band, ProxyGoldCurve, RatioSamples
from guardlit_callbacks.figures.proxy_gold import first_spread
from guardlit_callbacks.report.curves import band, thinned
from guardlit_callbacks.report.data import Run, Series
from guardlit_callbacks.tools.statistics import clip_fractions, clip_range, max_over_min, moments, split


@dataclass(frozen=True)
class Method:
    """Runs that differ only in their seeds.

    Attributes:
        label: its name in every legend.
        runs: at least one.
        run_names: a name for each.
    """

    label: str
    runs: tuple[Run, ...]
    run_names: tuple[str, ...]

    def gold(self, column: str) -> Band | None:
        """A column of `gold.csv` over the runs that have it."""
        return band([series for run in self.runs if (series := gold_series(run, column))])

    def proxy_gold(self) -> ProxyGoldCurve | None:
        """Proxy and gold average over training; with the interval of a single run, or the range of several."""
        gold, proxy = self.gold("average"), self.gold("proxy")
        if gold is None:
            return None
        low, high = gold.low, gold.high
        if gold.runs == 1 and (lower := self.gold("average_low")) and (upper := self.gold("average_high")):
            low, high = lower.mean, upper.mean
        at_gold = None if proxy is None else np.interp(gold.step, proxy.step, proxy.mean)
        return ProxyGoldCurve(gold.step, at_gold, gold.mean, low, high, self._proxy_spread())

    def _proxy_spread(self) -> float | None:
        """Standard deviation of the proxy at the start, mean over runs; None unless all runs have one."""
        found = [first_spread(run.gold.get("proxy_std", run.proxy_spread)) for run in self.runs if "proxy" in run.gold]
        return float(np.mean([s for s in found if s])) if found and all(found) else None

    def scalar(self, key: str) -> Band | None:
        """A logged key over the runs that have it, thinned."""
        curve = band([run.scalars[key] for run in self.runs if key in run.scalars])
        return curve and thinned(curve)

    def ratio_samples(self) -> RatioSamples | None:
        """The log ratios of all rounds and runs."""
        rounds = [arrays for run in self.runs for arrays in run.ratio.arrays]
        if not rounds:
            return None
        step, ratio = (np.concatenate([arrays[name] for arrays in rounds]) for name in ("step", "log_ratio"))
        if not all("clipped" in arrays for arrays in rounds):
            return RatioSamples(step, ratio)
        clipped = np.concatenate([arrays["clipped"] for arrays in rounds])
        ends = np.stack([clip_range(arrays["log_ratio"], arrays["clipped"]) for arrays in rounds])
        return RatioSamples(step, ratio, clipped, ends)

    def gradient(self, kind: str) -> dict[int, float]:
        """Mean gradient norm by step, over all rounds and runs; `kind` is "velocity" or "parameters"."""
        rounds = self._gradient_rounds(kind)
        steps = sorted({t for curve in rounds for t in curve})
        return {t: float(np.mean([curve[t] for curve in rounds if t in curve])) for t in steps}

    def gradient_spread(self, kind: str) -> float:
        """Largest over smallest mean norm of the steps, averaged over rounds and runs; NaN if not measured."""
        spreads = [max_over_min(curve) for curve in self._gradient_rounds(kind)]
        return float(np.mean(spreads)) if spreads else np.nan

    def _gradient_rounds(self, kind: str) -> list[dict[int, float]]:
        step = "parameter_step" if kind == "parameters" else "step"
        rounds = [arrays for run in self.runs for arrays in run.gradient.arrays if kind in arrays]
        return [{t: float(v.mean()) for t, v in split(a[step], a[kind]).items()} for a in rounds if a[kind].size]


def each_run(methods: Iterable[Method]) -> list[tuple[Method, str, Run]]:
    """Every run, with its method and its name."""
    return [(m, name, run) for m in methods for name, run in zip(m.run_names, m.runs, strict=True)]


def gold_series(run: Run, column: str) -> Series | None:
    """A column of a run's `gold.csv` without NaN; None without values."""
    if column not in run.gold:
        return None
    present = np.isfinite(run.gold[column])
    return Series(run.gold["step"][present].astype(int), run.gold[column][present]) if present.any() else None


@dataclass(frozen=True)
class StepRatio:
    """Statistics of the log ratio at one denoising step.

    Attributes:
        pooled: mean / std of all samples of all rounds, no unit.
        by_round: mean / std of each round, averaged over the rounds in which ratios changed, no unit.
        std: of all samples, log ratio.
        above: fraction of samples clipped above the range, 0 to 1; NaN if nothing clips.
        below: fraction clipped below it.
    """

    pooled: float
    by_round: float
    std: float
    above: float
    below: float


def ratio_by_step(method: Method) -> dict[int, StepRatio]:
    """The log ratio's statistics at every denoising step, over all rounds and runs."""
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
