"""What all processes must do together, so that none is left waiting for the others."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
from guardlit_callbacks._gather import gather_objects

from guardlit.errors import GuardlitError

LARGEST = ("_p50", "_p95", "_max", "_share", "_s", "_ms")
"""Endings of counters that cannot be added up: a statistic or a unit."""


def raise_together(trainer: pl.Trainer, error: GuardlitError | None) -> None:
    """Raise the first process's error on every one of them, if any has one; to be called by all."""
    if not trainer.strategy.reduce_boolean_decision(error is not None, all=False):
        return
    raise next(e for e in gather_objects(error) if e is not None)


def sum_counters(mine: Mapping[str, float]) -> dict[str, float]:
    """Counters of all processes as one: sums, or the largest for names with an ending of `LARGEST`."""
    total: dict[str, float] = {}
    for counters in gather_objects(dict(mine)):
        for name, value in counters.items():
            merge = max if name.endswith(LARGEST) else float.__add__
            total[name] = merge(total[name], float(value)) if name in total else float(value)
    return total
