"""Ratios of pairs with an interval, and the comparison with a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
SIGMAS = 3.0
"""How many standard errors below its baseline a ratio counts as worse: one false alarm in 700, at eight measures 90."""

Pair = tuple[float, float]
"""Seconds of the run and of the bare call after it."""


def bare_over_run(pairs: Sequence[Pair], tail: float = 0.0) -> float:
    """Seconds of the bare loop over those of the run.

    Args:
        pairs: for each step, the run's seconds since the previous step, and the bare call's.
        tail: seconds of the run after its last pair.
    """
    run, bare = np.sum(np.array(pairs, dtype=np.float64).reshape(-1, 2), axis=0)
    return float(bare / (run + tail))


def standard_error(groups: Sequence[Sequence[Pair]], tail: float = 0.0, seed: int = 0) -> float:
    """Standard error of `bare_over_run` over all groups: a bootstrap that resamples the pairs of each group.

    Args:
        groups: pairs of one kind, such as one phase.
        tail: seconds of the run that are in no pair.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    sums = np.zeros((RESAMPLES, 2))
    for group in groups:
        pairs = np.array(group, dtype=np.float64).reshape(-1, 2)
        sums += pairs[generator.integers(len(pairs), size=(RESAMPLES, len(pairs)))].sum(axis=1)
    return float(np.std(sums[:, 1] / (sums[:, 0] + tail), ddof=1))


def measures(rounds: Sequence[Mapping[str, tuple[Sequence[Pair], float]]]) -> dict[str, tuple[float, float]]:
    """Ratio and standard error of the first round and of all later ones, by phase and in total.

    Args:
        rounds: for each phase its pairs, and the run's total time in it.
    """
    out = {}
    for name, part in {"first": rounds[:1], "later": rounds[1:]}.items():
        if not part:
            continue
        groups = {phase: [pair for r in part for pair in r[phase][0]] for phase in part[0]}
        tails = {p: sum(r[p][1] for r in part) - sum(run for run, _ in groups[p]) for p in groups}
        for phase, pairs in groups.items():
            out[f"{name} {phase}"] = (
                bare_over_run(pairs, tails[phase]),
                standard_error([pairs], tails[phase]),
            )
        everything, tail = [pair for pairs in groups.values() for pair in pairs], sum(tails.values())
        out[f"{name} round"] = bare_over_run(everything, tail), standard_error(list(groups.values()), tail)
    return out


def worse(new: Sequence[Mapping[str, Sequence[float]]], base: Sequence[Mapping[str, Sequence[float]]]) -> list[str]:
    """One line for each ratio that is worse than the baseline beyond the noise.

    A run's error is the larger of its pairs' error and the spread of the baseline's runs: two processes on one machine
    may differ by more than the pairs of each.

    Args:
        new: for each run, ratio and standard error by measure.
        base: the same of the baseline's runs.
    """
    lines = []
    for name in sorted(set.intersection(*(set(run) for run in (*new, *base)))):
        before, after = ([run[name][0] for run in runs] for runs in (base, new))
        apart = float(np.std(before, ddof=1)) if len(before) > 1 else 0.0
        errors = [max(run[name][1], apart) for run in (*base, *new)]
        n = len(base)
        error = math.hypot(_of_mean(errors[:n]), _of_mean(errors[n:]))
        bound = float(np.mean(before)) - SIGMAS * error
        if float(np.mean(after)) < bound:
            lines.append(f"{name}: {np.mean(after):.3f}, baseline {np.mean(before):.3f}, worse than {bound:.3f}")
    return lines


def _of_mean(errors: Sequence[float]) -> float:
    return math.sqrt(sum(e * e for e in errors)) / len(errors)


def differing(new: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Settings in which a measurement differs from the baseline."""
    names = sorted(new.keys() | base.keys())
    return [f"{n} is {new.get(n)!r} here and {base.get(n)!r} there" for n in names if new.get(n) != base.get(n)]
