"""What a run logged, read back from its folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from guardlit_callbacks.report.data import Run as Logged
from guardlit_callbacks.report.data import read_run

from benchmarks.evidence.trials import Trial

Array = np.ndarray


def logged(trial: Trial) -> Logged:
    """The run of a trial; the parts of one that was interrupted are joined."""
    return read_run("+".join(map(str, trial.run.parts())))


def peak(curves: Mapping[str, Any], column: str) -> tuple[float, int]:
    """Highest value of a column, and the step at which it is reached."""
    index = int(np.nanargmax(curves[column]))
    return float(curves[column][index]), int(curves["step"][index])
