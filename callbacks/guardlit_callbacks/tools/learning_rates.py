"""Learning rates of a running Trainer."""

from __future__ import annotations

from guardlit_callbacks.tools.lightning import Trainer


def scale_learning_rates(trainer: Trainer, factor: float) -> None:
    """Multiplies every learning rate, and the schedulers' base rates, which would restore the old ones otherwise."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= factor
    for config in trainer.lr_scheduler_configs:
        if hasattr(config.scheduler, "base_lrs"):
            config.scheduler.base_lrs = [lr * factor for lr in config.scheduler.base_lrs]
