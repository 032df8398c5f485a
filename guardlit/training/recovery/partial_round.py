"""Ends a fit within a round: the round is left open in a checkpoint, as after a signal."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_info

from guardlit.errors import GuardlitError
from guardlit.training.recovery.restart import checkpoint_folder


def interrupted_path(trainer: pl.Trainer) -> Path:
    """The checkpoint of a run that is stopped within a round. Collective: every rank must call it."""
    return checkpoint_folder(trainer) / "interrupted.ckpt"


def save_partial_round(trainer: pl.Trainer) -> None:
    """Save a round that the Trainer's limits or a callback end before its last micro-batch. Collective.

    The run resumes from it as after a signal: it holds position, gradients and outputs of the update in progress.
    A Trainer without checkpoints saves nothing.
    """
    where = f"stopped by {_cause(trainer)} at update {trainer.global_step}, within round {trainer.current_epoch + 1}"
    if not trainer.checkpoint_callbacks:
        rank_zero_info(f"{where}; without checkpoints the run cannot be resumed")
        return
    path = interrupted_path(trainer)
    trainer.save_checkpoint(path, weights_only=False)
    rank_zero_info(f"{where}; resume with --ckpt_path {path}")


def check_time(trainer: pl.Trainer) -> None:
    """Refuse a fit whose time is used up before it begins: raises `GuardlitError`, naming the time that was used."""
    if (timer := _expired(trainer)) is not None:
        used = timer.time_elapsed()
        raise GuardlitError(
            f"trainer.max_time: the run that is resumed has taken {used:.0f} s of it already, and no time is left: "
            "max_time counts from the first start of a run; raise it"
        )


def _cause(trainer: pl.Trainer) -> str:
    if 0 <= trainer.max_steps <= trainer.global_step:
        return f"trainer.max_steps={trainer.max_steps}"
    return "trainer.max_time" if _expired(trainer) is not None else "a callback"


def _expired(trainer: pl.Trainer) -> Timer | None:
    timers = (c for c in trainer.callbacks if isinstance(c, Timer))  # type: ignore[attr-defined]
    return next((t for t in timers if (left := t.time_remaining()) is not None and left <= 0), None)
