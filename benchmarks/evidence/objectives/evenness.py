"""How evenly a clip acts over the denoising steps, from the arrays of `RatioDistribution`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

CALIBRATING = "round_00001.npz"
"""The round in which `clip_range: auto` follows every update."""


def clipped_by_step(folders: Iterable[Path]) -> dict[int, float]:
    """The clipped fraction of each denoising step's off-policy transitions, over all rounds but the first.

    A round's first update is on-policy, with a log ratio of exactly 0, and clips nothing.

    Args:
        folders: the parts of a run, in the order of time; a later part replaces its rounds.
    """
    rounds = {path.name: path for folder in folders for path in sorted(folder.glob("ratio/round_*.npz"))}
    found = [np.load(path) for name, path in rounds.items() if name != CALIBRATING]
    if not found:
        return {}
    step, log_ratio, clipped = (np.concatenate([a[key] for a in found]) for key in ("step", "log_ratio", "clipped"))
    moved = log_ratio != 0
    return {int(t): float(clipped[moved & (step == t)].mean()) for t in np.unique(step[moved])}


def max_over_min(by_step: Mapping[int, float]) -> float | None:
    """The largest fraction over the smallest; None where a step clips nothing, or there is none."""
    low = min(by_step.values(), default=0.0)
    return max(by_step.values()) / low if low > 0 else None
