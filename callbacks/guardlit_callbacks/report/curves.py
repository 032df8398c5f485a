"""Curves over training: which keys, and their mean and range over runs."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from guardlit_callbacks.figures import Band
from guardlit_callbacks.report.data import ReportError, Run, Series

CURVES = (
    ("reward", ("average_reward/*", "reward/*_mean", "train*reward")),
    ("reward", ("val*reward", "reward")),
    ("fraction of transitions", ("train/clip_off_policy", "ratio/clip*", "train/clip_*", "*clip*frac*")),
    ("KL divergence", ("*kl",)),
    ("norm, loss / parameter", ("gradient/norm_before_clipping", "*grad_norm")),
    ("largest / smallest step", ("gradient/velocity/max_over_min",)),
    ("largest abs(mean) / std", ("ratio/log_ratio/max_shift",)),
    ("std of ratio", ("*ratio_std",)),
    ("loss", ("*loss",)),
)
"""Default training curves: a unit, and patterns of logged keys, of which the first with a match is taken."""

DRIFT = {
    "edge_density": "fraction of pixels",
    "dark_share": "fraction of pixels",
    "grey_entropy": "bits",
    "spectral_peak": "dB",
    "saturation": "0 to 1",
    "diversity": "RMS difference",
}
"""Statistics that `DriftSentinels` logs as `drift/NAME`, and their units."""

MAX_PANELS = 12

MAX_POINTS = 200
"""Most points of a training curve, so that the page of a long run stays small and its noise readable."""


def band(runs: Sequence[Series]) -> Band | None:
    """Mean and range over runs, at every step of any of them within the steps that all of them cover.

    Values in between are interpolated; seeds have their steps in common. None if the runs do not overlap.
    """
    if not runs:
        return None
    first, last = max(s.step[0] for s in runs), min(s.step[-1] for s in runs)
    steps = np.unique(np.concatenate([s.step for s in runs]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not steps.size:
        return None
    values = np.stack([np.interp(steps, s.step, s.value) for s in runs])
    return Band(steps, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(runs))


def thinned(curve: Band) -> Band:
    """The curve averaged to at most `MAX_POINTS` points."""
    parts = np.array_split(np.arange(curve.step.size), min(MAX_POINTS, curve.step.size))
    step, mean, low, high = (
        np.array([values[part].mean() for part in parts]) for values in (curve.step, curve.mean, curve.low, curve.high)
    )
    return Band(step, mean, low, high, curve.runs)


def curve_keys(runs: Sequence[Run], patterns: Sequence[str]) -> dict[str, str]:
    """The logged keys to plot and their units, in the order of the patterns, or the default ones of `CURVES`."""
    logged = sorted({key for run in runs for key in run.scalars})
    fitting = {pattern: [key for key in logged if fnmatchcase(key, pattern)] for pattern in patterns}
    for pattern, found in fitting.items():
        if not found:
            raise ReportError(f"--curves {pattern!r} is no logged key; there are {', '.join(logged) or 'none'}")
    if not patterns:
        fitting = {choice[0]: _first_fitting(choice, logged) for _, choice in CURVES}
    chosen = list(dict.fromkeys(key for keys in fitting.values() for key in keys))
    if len(chosen) > MAX_PANELS:
        raise ReportError(
            f"the training curves would take {len(chosen)} panels, {MAX_PANELS} at most; choose keys with --curves"
        )
    return {key: _unit(key) for key in chosen}


def drift_keys(runs: Sequence[Run]) -> dict[str, str]:
    """The logged statistics of `DriftSentinels` and their units."""
    return {f"drift/{name}": unit for name, unit in DRIFT.items() if any(f"drift/{name}" in r.scalars for r in runs)}


def _first_fitting(patterns: Sequence[str], logged: Sequence[str]) -> list[str]:
    found = ([key for key in logged if fnmatchcase(key, pattern)] for pattern in patterns)
    return next(filter(None, found), [])


def _unit(key: str) -> str:
    return next((unit for unit, patterns in CURVES if any(fnmatchcase(key, p) for p in patterns)), "value")
