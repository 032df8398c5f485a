"""Faults of one process among several."""

from __future__ import annotations

import signal

from benchmarks.faults.inject import SCORE, STEP, before, fail, send
from benchmarks.faults.lab import Setting
from benchmarks.faults.scenario import Fault
from guardlit.errors import GuardlitError

TWO = Setting(2, False, "ddp")
TIMEOUT = 8
"""Seconds that a collective may take, where a process is to be stopped."""
WITHIN = 22

FAULTS = [
    Fault(
        "one of two processes is killed; nobody looks after the other",
        setting=TWO,
        prepare=before(STEP, WITHIN, send(signal.SIGKILL), rank=1),
        agent=False,
        says=("guardlit fit: error: process 1",),
    ),
    Fault(
        "the process that keeps the store is killed",
        setting=TWO,
        prepare=before(STEP, WITHIN, send(signal.SIGKILL), rank=0),
        agent=False,
        says=("guardlit fit: error: process 0",),
    ),
    Fault(
        "one of two processes is stopped (SIGSTOP)",
        setting=Setting(2, False, "ddp", timeout=TIMEOUT),
        prepare=before(STEP, WITHIN, send(signal.SIGSTOP), rank=1),
        agent=False,
        says=("guardlit fit: error: process 1", "timeout"),
    ),
    Fault(
        "one of two processes raises what a library might",
        setting=TWO,
        prepare=before(STEP, WITHIN, fail(RuntimeError("the wires are cut")), rank=1),
        agent=False,
        code=None,
        says=("process 1", "the wires are cut"),
    ),
    Fault(
        "the reward of one of two processes is hopeless",
        setting=TWO,
        prepare=before(SCORE, 4, fail(GuardlitError("the licence of the scorer ran out")), rank=1),
        agent=False,
        says=("guardlit fit: error: ", "process 1", "the licence of the scorer ran out", "go on with --ckpt_path"),
    ),
]
