"""What a run is doing right now, told to whichever callback listens."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl

Phase = Literal["encode", "rollout", "reward", "update", "analysis"]


def announce(trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
    """Call `on_phase(trainer, phase, done, total)` of every callback that has it: progress bars, signal guards, ..."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        listen = getattr(callback, "on_phase", None)
        if listen is not None:
            listen(trainer, phase, done, total)
