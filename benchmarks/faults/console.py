"""Kills of the command itself, in a process that imports everything: what the forked runs stand for."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

from benchmarks.faults.kills import LIMIT, History, compared, note
from benchmarks.faults.lab import ONE, TWO, Lab, last_update, said
from benchmarks.faults.processes import Launch

PROGRAMS = {
    ONE: [sys.executable, "-m", "guardlit"],
    TWO: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "guardlit"],
}
PATIENCE = 300.0
"""Seconds that importing and the first round may take on a busy machine."""


def histories(lab: Lab) -> Iterator[History]:
    """One run of one process and one of torchrun with two, each killed once in its second round, and resumed."""
    for setting, program in PROGRAMS.items():
        folder = lab.write(setting, f"console-{setting.name}")
        history = History(f"{setting.name}, command")
        begun = time.monotonic()
        launch = Launch(lab.args(setting, folder), said(folder), program=program)
        if launch.until(lambda folder=folder: last_update(folder) >= 5, PATIENCE):
            launch.signal(signal.SIGKILL)
            after = round(time.monotonic() - begun, 3)
            history.kills.append(note(folder, after, False, "all", launch.wait(LIMIT)))
        launch = Launch(lab.args(setting, folder), said(folder), program=program)
        yield compared(lab, setting, folder, history, launch)
