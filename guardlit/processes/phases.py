"""Progress within a round, announced to the callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import lightning.pytorch as pl

Phase = Literal["encode", "rollout", "reward", "update", "analysis"]
OnPhase = Callable[[Phase, int, int], None]
"""Called with a phase, the units of it that are done and their total; may raise, to stop the run."""


def announce(trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
    """Call `on_phase(trainer, phase, done, total)` of every callback that has it: progress bars, signal guards, ..."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        listen = getattr(callback, "on_phase", None)
        if listen is not None:
            listen(trainer, phase, done, total)


def ignore(phase: Phase, done: int, total: int) -> None:
    """The `OnPhase` of a caller that shows no progress."""
