"""What callbacks need of a run, checked in one place: each failure is one line that says what to change."""

from __future__ import annotations

from importlib import import_module
from inspect import ismethod
from typing import Any

from guardlit_callbacks.tools.lightning import (
    PACKAGE,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)

HIDDEN_PARAMETERS = {"FSDPStrategy": "FSDP1", "DeepSpeedStrategy": "DeepSpeed"}
"""Strategies that flatten or partition parameters and gradients out of a callback's sight."""


def check_strategy(trainer: Trainer, callback: object) -> None:
    """Refuse a strategy under which parameters and gradients cannot be read.

    Raises:
        MisconfigurationException: the strategy is FSDP1 or DeepSpeed.
    """
    for kind in type(trainer.strategy).__mro__:
        if (found := HIDDEN_PARAMETERS.get(kind.__name__)) is not None:
            raise MisconfigurationException(
                f"{_name(callback)}: {found} hides the parameters and their gradients; use DDP or FSDP2 "
                "(ModelParallelStrategy), or remove the callback"
            )


def check_one_optimizer(trainer: Trainer, callback: object) -> None:
    """Refuse several optimizers, whose gradients would be mixed.

    Raises:
        MisconfigurationException: there are several optimizers.
    """
    if len(trainer.optimizers) > 1:
        raise MisconfigurationException(
            f"{_name(callback)}: the module has {len(trainer.optimizers)} optimizers, and their gradients would be "
            "mixed; use one optimizer with parameter groups, or remove the callback"
        )


def check_unscaled(trainer: Trainer, callback: object) -> None:
    """Refuse an optimizer that gets the gradients of float16 precision still multiplied by the loss scale.

    Raises:
        MisconfigurationException: the optimizer unscales gradients itself.
    """
    for optimizer in trainer.optimizers if scaler(trainer) is not None else ():
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            raise MisconfigurationException(
                f"{_name(callback)}: a fused {type(optimizer).__name__} in 16-mixed precision unscales the gradients "
                "itself, so that only scaled ones can be measured; set fused=False, or train in bf16-mixed"
            )


def loss_scale(trainer: Trainer) -> float:
    """Factor of the loss in float16 precision, 1 in others. Waits for the GPU."""
    found = scaler(trainer)
    return 1.0 if found is None else float(found.get_scale())


def sees_clipping(pl_module: LightningModule) -> bool:
    """Whether the norm before clipping is known.

    Under manual optimization the module clips within `training_step`, before any hook; only its own `gradient_norm()`
    knows the norm before.
    """
    return bool(pl_module.automatic_optimization) or ismethod(getattr(pl_module, "gradient_norm", None))


def check_validation(trainer: Trainer, pl_module: LightningModule, callback: object) -> None:
    """Refuse a module without `validation_step`, and warn of a `fit` without validation.

    Raises:
        MisconfigurationException: the module does not define `validation_step`.
    """
    is_overridden = import_module(f"{PACKAGE}.utilities.model_helpers").is_overridden
    if not is_overridden("validation_step", pl_module):
        raise MisconfigurationException(
            f"{_name(callback)}: {type(pl_module).__name__} has no validation_step; write one that returns the images "
            "and what belongs to them, or remove the callback"
        )
    if not trainer.enable_validation:
        rank_zero_warn(
            f"{_name(callback)}: this run does not validate, so there is nothing to show; give `fit` validation data "
            "and limit_val_batches above 0, or remove the callback"
        )


def scaler(trainer: Trainer) -> Any:
    """The loss scaler of float16 precision; None in other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _name(callback: object) -> str:
    return type(callback).__name__
