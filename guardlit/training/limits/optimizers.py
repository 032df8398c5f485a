"""Every optimizer of torch and every learning-rate schedule: what it does in a run of rounds, or why it is refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from guardlit.errors import GuardlitError
from guardlit.training.limits.entry import Entry, refuse

WORKS = Entry("works")

OPTIMIZERS: dict[str, Entry] = {
    "Adafactor": Entry("its `eps` is a pair, `[null, 0.001]` by default"),
    "Adadelta": WORKS,
    "Adagrad": WORKS,
    "Adam": WORKS,
    "Adamax": WORKS,
    "AdamW": Entry("the default, with `lr: 1e-4` and `weight_decay: 1e-4`"),
    "ASGD": WORKS,
    "LBFGS": refuse(
        "it evaluates the loss of an update several times, and a round's update is one gradient; take AdamW"
    ),
    "Muon": Entry("for matrices, as LoRA has; refuses full fine-tuning, which trains vectors too"),
    "NAdam": WORKS,
    "RAdam": WORKS,
    "RMSprop": WORKS,
    "Rprop": WORKS,
    "SGD": WORKS,
    "SparseAdam": refuse("it needs sparse gradients, and a policy's are dense; take AdamW"),
}
"""Those of torch.optim by name."""

SCHEDULERS: dict[str, Entry] = {
    "LambdaLR": Entry("in Python: its factor is a function"),
    "MultiplicativeLR": Entry("in Python: its factor is a function"),
    "StepLR": WORKS,
    "MultiStepLR": WORKS,
    "ConstantLR": WORKS,
    "LinearLR": WORKS,
    "ExponentialLR": WORKS,
    "SequentialLR": Entry("in Python: it is made of other schedules"),
    "CosineAnnealingLR": WORKS,
    "ChainedScheduler": Entry("in Python: it is made of other schedules"),
    "ReduceLROnPlateau": refuse(
        "it steps after the round's checkpoint is written, and a resumed run would miss that step; take a schedule by "
        "updates such as CosineAnnealingLR, or guardlit_callbacks.OverOptimizationStop to react to a score"
    ),
    "CyclicLR": WORKS,
    "CosineAnnealingWarmRestarts": WORKS,
    "OneCycleLR": Entry("`total_steps` must be at least the updates of the run"),
    "PolynomialLR": WORKS,
    "LRScheduler": Entry("the base of your own"),
}
"""Those of torch.optim.lr_scheduler by name; each steps after every update."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that cannot make an update of a policy, or not with its settings.

    One of torch makes one step on a separate parameter of 2 x 2 numbers on the device of the others, so that a setting
    of the wrong kind is an error before a round is drawn. What another needs for a step is not known.

    Raises:
        GuardlitError: naming the class and the reason.
    """
    name = type(optimizer).__name__
    if (reason := _refused(optimizer, OPTIMIZERS)) is not None:
        raise GuardlitError(f"model.optimizer: {name}: {reason}")
    if not _is_of_torch(type(optimizer)):
        return
    parameters, settings = optimizer.param_groups[0]["params"], {**optimizer.param_groups[0]}
    probe = torch.nn.Parameter(torch.ones(2, 2, device=parameters[0].device if parameters else None))
    probe.grad = torch.ones_like(probe)
    try:
        trial = type(optimizer)([{**settings, "params": [probe]}])  # type: ignore[call-arg]
        trial.step()
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        told = ", ".join(
            f"{key}={value}" for key, value in settings.items() if key in ("lr", "eps", "betas", "momentum")
        )
        raise GuardlitError(f"model.optimizer: {name} cannot make a step with {told}: {error}") from error


def check_scheduler(scheduler: object, updates: float) -> None:
    """Refuse a schedule that a run cannot follow to its end.

    Args:
        scheduler: of the learning rate.
        updates: of the run; infinity where no end is set.

    Raises:
        GuardlitError: naming the class and the reason.
    """
    name = type(scheduler).__name__
    if (reason := _refused(scheduler, SCHEDULERS)) is not None:
        raise GuardlitError(f"model.lr_scheduler: {name}: {reason}")
    total = scheduler.total_steps if isinstance(scheduler, OneCycleLR) else None
    if total is not None and total < updates:
        raise GuardlitError(
            f"model.lr_scheduler: {name}: total_steps={total} is less than the run's {updates:g} updates"
        )


def _refused(made: object, table: Mapping[str, Entry]) -> str | None:
    """Why a class of torch, or one derived from it, is refused."""
    for kind in type(made).__mro__:
        entry = table.get(kind.__name__) if _is_of_torch(kind) else None
        if entry is not None and not entry.allows(made):
            return entry.refused
    return None


def _is_of_torch(kind: type) -> bool:
    return f"{kind.__module__}.".startswith("torch.optim.")
