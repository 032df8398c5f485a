"""Faults that are signals, as schedulers and users send them."""

from __future__ import annotations

import signal

from benchmarks.faults.inject import STEP, VALIDATE, VELOCITY, after, before, send
from benchmarks.faults.lab import SHARDED, TWO, Setting
from benchmarks.faults.scenario import Fault, Like

RESUME = "resume with --ckpt_path"
WITHIN = 22
"""A micro-batch within an update of the second round: the second of four."""

LIKE: dict[Setting, Like] = {TWO: "bits", SHARDED: "rounding"}
"""Sharded gradients are averages over the ranks: a resumed update adds to them in another order."""

FAULTS = [
    Fault(
        "SIGTERM within an update",
        prepare=before(STEP, WITHIN, send(signal.SIGTERM)),
        codes=(128 + signal.SIGTERM,),
        says=("stopped by SIGTERM at update 5", RESUME),
    ),
    Fault(
        "SIGTERM twice",
        prepare=before(STEP, WITHIN, send(signal.SIGTERM, times=2)),
        codes=(128 + signal.SIGTERM,),
        says=("stopped by SIGTERM", RESUME),
    ),
    Fault(
        "SIGUSR1 in a rollout",
        prepare=after(VELOCITY, 30, send(signal.SIGUSR1)),
        codes=(128 + signal.SIGUSR1,),
        says=("stopped by SIGUSR1", RESUME),
    ),
    Fault(
        "ctrl-C in a validation",
        changes={"trainer__check_val_every_n_epoch": 1},
        prepare=before(VALIDATE, 2, send(signal.SIGINT)),
        codes=(128 + signal.SIGINT,),
        says=("stopped by SIGINT", RESUME),
    ),
    Fault(
        "ctrl-C twice",
        prepare=before(STEP, WITHIN, send(signal.SIGINT, times=2)),
        codes=(128 + signal.SIGINT,),
        says=("interrupted",),
    ),
    *(
        Fault(
            f"SIGTERM to one of two ranks ({setting.strategy}), within an update",
            setting=setting,
            prepare=before(STEP, WITHIN, send(signal.SIGTERM), rank=1),
            agent=False,
            codes=(128 + signal.SIGTERM,),
            says=("stopped by SIGTERM at update 5", RESUME),
            like=like,
        )
        for setting, like in LIKE.items()
    ),
]
