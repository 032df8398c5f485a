"""Learning rates of a run in progress."""

from __future__ import annotations

from guardlit_callbacks.tools.lightning import Trainer


def scale_learning_rates(trainer: Trainer, factor: float) -> None:
    """Multiply all of them; also the schedulers' base rates, from which they would set the old rate again."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] *= factor
    for config in trainer.lr_scheduler_configs:
        if hasattr(config.scheduler, "base_lrs"):
            config.scheduler.base_lrs = [lr * factor for lr in config.scheduler.base_lrs]
