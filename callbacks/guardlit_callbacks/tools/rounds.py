"""Which rounds (epochs) something is done in: the first, some, and always the last."""

from __future__ import annotations

import math

from guardlit_callbacks.tools.lightning import Trainer


def is_due(trainer: Trainer, number: int, every: int, stopping: bool = False) -> bool:
    """Whether something is due that is done in round 1, every so many rounds after it, and in the last round.

    Args:
        trainer: of the run.
        number: of the round, from 1.
        every: rounds from one time to the next; 0 for never.
        stopping: whether the round turned out to be the last one: the run is asked to stop.
    """
    return every > 0 and ((number - 1) % every == 0 or stopping or is_last(trainer, number))


def is_last(trainer: Trainer, number: int) -> bool:
    """Whether round `number`, counted from 1, reaches `max_epochs` or `max_steps`."""
    if trainer.max_steps < 0:
        return trainer.max_epochs == number
    steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    return trainer.max_epochs == number or number * steps >= trainer.max_steps
