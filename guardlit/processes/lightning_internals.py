"""What Lightning's loops do not do by themselves."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def validate_now(trainer: pl.Trainer) -> None:
    """Validate before the first training batch; Lightning does so only after one."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    if not loop.skip:
        trainer.validating = True
        loop.run()
        trainer.training = True


def close_epoch(checkpoint: dict[str, Any], epochs: int) -> None:
    """Let Lightning's loop counters say what is true between two rounds: so many epochs are done, none is begun.

    A checkpoint written at the last batch of an epoch, in its closing hooks or while the next rollout runs leaves them
    half-way; a run that counts updates instead of epochs would then resume with a batch too many.

    Args:
        checkpoint: about to be written.
        epochs: rounds that are finished.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for count in ("total", "current"):
        loops["epoch_progress"][count] = dict.fromkeys(loops["epoch_progress"][count], epochs)
    batches = loops["epoch_loop.batch_progress"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
    batches["is_last_batch"] = False
    updates = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = updates


def move_within_epoch(checkpoint: dict[str, Any], batch: int) -> None:
    """Let Lightning's loop counters stand before a batch of the epoch that was begun.

    They count batches, of which other numbers of processes make other numbers.

    Args:
        checkpoint: about to be taken up.
        batch: index in the epoch; 0 where the checkpoint stands between two epochs, whose counters are right.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    moved = batch - progress["current"]["ready"] if batch else 0
    if moved:
        for count in ("total", "current"):
            progress[count] = {key: value + moved for key, value in progress[count].items()}


def repeat_validation(trainer: pl.Trainer) -> None:
    """Validate after a round, as Lightning does: in its logs the round's last update counts only afterwards."""
    trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
    validate_now(trainer)
    trainer.fit_loop.epoch_loop._batches_that_stepped += 1


def begin_validation_anew(trainer: pl.Trainer) -> None:
    """Have a checkpoint that is written within a validation know nothing of it."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset_on_run()
