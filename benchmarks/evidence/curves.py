"""What a run logged, read back from its folders."""

from __future__ import annotations

from guardlit_callbacks.report.data import Run as Logged
from guardlit_callbacks.report.data import read_run

from benchmarks.evidence.trials import Trial


def logged(trial: Trial) -> Logged:
    """The run of a trial; the parts of one that was interrupted are joined."""
    return read_run("+".join(map(str, trial.run.parts())))
