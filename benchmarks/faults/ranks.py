"""Faults of one rank among several."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from benchmarks.faults.inject import SCORE, STEP, before, fail, send
from benchmarks.faults.lab import TWO, Setting, last_update
from benchmarks.faults.processes import Launch
from benchmarks.faults.scenario import Fault
from guardlit.errors import GuardlitError

TIMEOUT = 8
"""Seconds that a collective may take where a rank is stopped."""
WITHIN = 22


def _kill_torchrun(launch: Launch, folder: Path) -> None:
    """In the second round."""
    launch.until(lambda: last_update(folder) >= 5)
    launch.signal_launcher(signal.SIGKILL)


FAULTS = [
    Fault(
        "one of two ranks is killed, without a launcher that ends the other",
        setting=TWO,
        prepare=before(STEP, WITHIN, send(signal.SIGKILL), rank=1),
        agent=False,
        says=("guardlit fit: error: rank 1", "is dead, stopped or disconnected"),
    ),
    Fault(
        "the rank that hosts the store is killed",
        setting=TWO,
        prepare=before(STEP, WITHIN, send(signal.SIGKILL), rank=0),
        agent=False,
        says=("guardlit fit: error: rank 0 or torchrun is gone",),
    ),
    Fault(
        "torchrun is killed while its ranks compute for minutes",
        setting=TWO,
        prepare=before(STEP, WITHIN, lambda *_: time.sleep(600)),
        during=_kill_torchrun,
        codes=(-9,),  # they exit by themselves, and no launcher is left to report how
    ),
    Fault(
        "one of two ranks is stopped (SIGSTOP)",
        setting=Setting(2, False, "ddp", timeout=TIMEOUT),
        prepare=before(STEP, WITHIN, send(signal.SIGSTOP), rank=1),
        says=("guardlit fit: error: rank 1", "timeout"),
    ),
    Fault(
        "one of two ranks raises an error of a library",
        setting=TWO,
        prepare=before(STEP, WITHIN, fail(RuntimeError("the wires are cut")), rank=1),
        agent=False,
        codes=(1, 2),
        says=("the wires are cut",),
    ),
    Fault(
        "the reward of one of two ranks fails for good",
        setting=TWO,
        prepare=before(SCORE, 6, fail(GuardlitError("the license of the scorer ran out")), rank=1),
        agent=False,
        says=("guardlit fit: error: ", "rank 1", "the license of the scorer ran out", "resume with --ckpt_path"),
    ),
]
