"""Clip ranges by the fraction of the transitions that they clip.

The log ratios of the six objectives differ several-fold, so that no grid of numbers is fair to all. The
fraction of the off-policy transitions that a range clips means the same for each. It is measured for each objective and
learning rate in a short run, and the range is then fixed, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.evidence.trials import Trial

Key = tuple[str, float, str]
"""Objective, learning rate and condition."""


class ClipRanges:
    """Clip ranges from finished calibrations.

    Args:
        trials: calibrations; those that failed are left out.
    """

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._sizes: Mapping[Key, np.ndarray] = {
            (trial.method, trial.lr, trial.condition): sizes
            for trial in trials
            if len(sizes := off_policy_sizes(trial.run.parts()))
        }

    def __call__(self, objective: str, lr: float, clipped: float, condition: str) -> float:
        """The range that clips a fraction of the transitions; raises `KeyError` without a calibration."""
        return float(f"{np.quantile(self._sizes[objective, lr, condition], 1 - clipped):.1e}")


def off_policy_sizes(folders: Iterable[Path]) -> np.ndarray:
    """|log ratio| of the off-policy transitions of a run; a round's first update has a log ratio of exactly 0."""
    rounds = {path.name: path for folder in folders for path in sorted(folder.glob("ratio/round_*.npz"))}
    sizes = np.concatenate([np.zeros(0), *(np.abs(np.load(path)["log_ratio"]) for path in rounds.values())])
    return sizes[sizes > 0]
