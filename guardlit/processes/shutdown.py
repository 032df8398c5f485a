"""What a command gives back however it ends."""

from __future__ import annotations

import atexit

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn


def release_resources(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Close what holds signals, processes and connections: callbacks and the module's reward.

    Lightning calls `teardown` only at a good end. What is closed already stays so; what cannot be closed must hide
    neither why a run ends nor that it is done.
    """
    for holder in (*trainer.callbacks, getattr(module, "reward_runner", None)):  # type: ignore[attr-defined]
        close = getattr(holder, "close", None)
        try:
            if callable(close):
                close()
        except Exception as error:
            rank_zero_warn(f"{type(holder).__name__} could not be closed: {error}")


@atexit.register
def _leave() -> None:
    """Take down the process group while the interpreter still lives: gloo's threads may abort the process after it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
