"""Releases resources at the end of a run."""

from __future__ import annotations

import atexit

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn


def release_resources(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Close the callbacks and the module's reward on any exit: they hold signals, processes and connections.

    Lightning calls `teardown` only on success. Closing twice does nothing. A failure to close is a warning: it must not
    hide the run's own error.
    """
    for holder in (*trainer.callbacks, getattr(module, "reward_runner", None)):  # type: ignore[attr-defined]
        close = getattr(holder, "close", None)
        try:
            if callable(close):
                close()
        except Exception as error:
            rank_zero_warn(f"{type(holder).__name__} could not be closed: {error}")


@atexit.register
def _destroy_process_group() -> None:
    """Destroy the process group before the interpreter exits: gloo's threads may abort the process afterwards."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
