"""Faults of numbers: NaN and infinity in rewards, gradients and velocities."""

from __future__ import annotations

from benchmarks.faults.inject import (
    SCORE,
    UPDATE,
    VELOCITY,
    before,
    infinite,
    no_numbers,
    one_no_number,
    spoil,
    spoil_gradient,
)
from benchmarks.faults.scenario import Fault

ERROR = "guardlit fit: error: "
SECOND_ROUND = 7
"""Calls of the reward or of the network before the second round begins, at least."""

FAULTS = [
    Fault(
        "one reward of a round is NaN, none may fail",
        prepare=spoil(SCORE, range(5, 99), one_no_number),
        says=(ERROR, "rewards failed", "on prompt '", "resume with --ckpt_path"),
    ),
    Fault(
        "one reward is NaN, some may fail",
        changes={"model__max_failed_fraction": 0.2},
        prepare=spoil(SCORE, range(5, 6), one_no_number),
        codes=(0,),
        like="own",
    ),
    Fault(
        "every reward is NaN",
        prepare=spoil(SCORE, range(5, 99), no_numbers),
        says=(ERROR, "8 of 8 rewards failed", "resume with --ckpt_path"),
    ),
    Fault(
        "gradient is NaN: stop",
        prepare=before(UPDATE, 6, spoil_gradient),
        says=(ERROR, "gradient norm is nan at update 5", "the weights were not touched", "update_5.ckpt"),
    ),
    Fault(
        "gradient is NaN: skip",
        changes={"model__nonfinite": "skip"},
        prepare=before(UPDATE, 6, spoil_gradient),
        codes=(0,),
        like="own",
    ),
    Fault(
        "velocity is infinite in a rollout",
        prepare=spoil(VELOCITY, range(30, 31), infinite),
        says=(ERROR, "velocity"),
    ),
]
