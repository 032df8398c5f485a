"""Checks of settings that would waste a run or corrupt its weights."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import torch

from guardlit.errors import GuardlitError
from guardlit.rounds.plan import RoundPlan
from guardlit.sde import Coefficients

FITTING = {torch.float16: ("16-mixed",), torch.bfloat16: ("bf16-mixed", "32-true")}
"""Precisions of the Trainer that go with a network that computes in half precision by itself."""


def check_precision(precision: str, network: torch.dtype | None = None) -> None:
    """Refuse a precision in which trained weights, noise or ratios are not float32, or gradients vanish.

    Args:
        precision: Lightning's name of the Trainer's.
        network: the half precision that the network trains in by itself (`FlowPolicy.forward_dtype`), if it does.

    Raises:
        GuardlitError: naming what would be right.
    """
    if precision in ("16-true", "bf16-true"):
        raise GuardlitError(
            f"trainer.precision={precision} would train in half precision: take {precision.removesuffix('true')}mixed, "
            "and weights_dtype of the policy for storing what is frozen"
        )
    if network is None or precision in FITTING[network]:
        return
    if network == torch.float16:
        raise GuardlitError(
            f"trainer.precision={precision} with weights_dtype: fp16 of the policy: without a loss scale float16 "
            "gradients vanish; take trainer.precision=16-mixed, which only a GPU has, or weights_dtype: bf16 or fp32"
        )
    raise GuardlitError(
        f"trainer.precision={precision} with weights_dtype: bf16 of the policy, which computes in bfloat16: take "
        "trainer.precision=bf16-mixed, or weights_dtype: fp16 or fp32"
    )


def check_fraction(name: str, value: float) -> float:
    """Return a number in [0, 1]; raises `GuardlitError` for any other."""
    if not 0 <= value <= 1:
        raise GuardlitError(f"{name}={value} must lie in [0, 1]")
    return value


def check_noise(coefficients: Coefficients, train_steps: int, sampler: str) -> None:
    """Refuse trained steps that draw no noise: raises `GuardlitError`, naming the sampler and the steps."""
    silent = (coefficients.std[:train_steps] <= 0).nonzero().flatten().tolist()
    if silent:
        raise GuardlitError(
            f"{sampler} draws no noise at trained steps {silent}: the ratio does not exist there; "
            "raise its noise_level or lower rollout.timestep_fraction"
        )


def run_length(trainer: pl.Trainer, plan: RoundPlan) -> float:
    """Updates of a run; infinity where neither rounds nor updates have an end."""
    rounds, updates = trainer.max_epochs, trainer.max_steps
    by_rounds = math.inf if rounds is None or rounds < 0 else rounds * plan.updates_per_round
    return min(by_rounds, math.inf if updates < 0 else updates)
