"""The configured optimizer and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from guardlit.config.library_errors import as_one_line
from guardlit.errors import at_least
from guardlit.training.limits.optimizers import check_optimizer, check_scheduler


def configured(
    make: Callable[[Sequence[Tensor]], Optimizer],
    make_scheduler: Callable[[Optimizer], Any] | None,
    parameters: Sequence[Tensor],
    updates: float,
) -> Any:
    """Build the optimizer and the schedule, in the form that `configure_optimizers` returns.

    Args:
        make: builds the optimizer with the configured settings.
        make_scheduler: builds the schedule, stepped after every update; null keeps the learning rate.
        parameters: that train.
        updates: of the run; infinity where no end is set.

    Raises:
        GuardlitError: an optimizer or a schedule that is refused, a setting that it refuses, or an invalid learning
            rate; names it in one line.
    """
    with as_one_line("model.optimizer"):
        optimizer = make(parameters)
    for group in optimizer.param_groups:
        at_least(0, **{"model.optimizer: lr": float(group["lr"])})
    check_optimizer(optimizer)
    if make_scheduler is None:
        return optimizer
    with as_one_line("model.lr_scheduler"):
        scheduler = make_scheduler(optimizer)
    check_scheduler(scheduler, updates)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
