"""Every optimizer of torch and every learning-rate schedule: what it does in a run of rounds, or why it is refused."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

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

    It makes one step on a separate parameter of 2 x 2 numbers, so that a setting of the wrong kind is an error before a
    round is drawn.

    Raises:
        GuardlitError: naming the class and the reason.
    """
    name = type(optimizer).__name__
    for kind in type(optimizer).__mro__:
        entry = OPTIMIZERS.get(kind.__name__)
        if entry is not None and not entry.allows(optimizer):
            raise GuardlitError(f"model.optimizer: {name}: {entry.refused}")
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    probe = torch.nn.Parameter(torch.ones(2, 2))
    probe.grad = torch.ones(2, 2)
    try:
        trial = type(optimizer)([{**settings, "params": [probe]}])  # type: ignore[call-arg]
    except Exception:  # a class of the user's with arguments of another kind
        return
    try:
        trial.step()
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
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
    entry = SCHEDULERS.get(name)
    if entry is not None and not entry.allows(scheduler):
        raise GuardlitError(f"model.lr_scheduler: {name}: {entry.refused}")
    total = getattr(scheduler, "total_steps", None)
    if total is not None and total < updates:
        raise GuardlitError(
            f"model.lr_scheduler: {name}: total_steps={total} is less than the run's {updates:g} updates"
        )
