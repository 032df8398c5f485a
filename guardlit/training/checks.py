"""Checks that stop a run before it wastes time or spoils weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from guardlit.config.limits import as_one_line
from guardlit.errors import GuardlitError, at_least
from guardlit.objective import Objective
from guardlit.rounds.plan import RoundPlan
from guardlit.sde import Coefficients
from guardlit.training.linter import clip_never_acts

Outputs = Mapping[str, Tensor]
Gather = Callable[[Tensor], Tensor]


FITTING = {torch.float16: ("16-mixed",), torch.bfloat16: ("bf16-mixed", "32-true")}
"""Precisions of the Trainer that go with a network that computes in half precision by itself."""


def check_precision(precision: str, network: torch.dtype | None = None) -> None:
    """Refuse a precision that would take what trains, noise and ratios out of float32, or let gradients vanish.

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


def check_clip(objective: Objective, plan: RoundPlan, elements: int) -> None:
    """Refuse a clip range that can never act; `clip_range: null` says that none is wanted.

    Args:
        objective: of the run.
        plan: of a round.
        elements: D, latent elements of a sample.

    Raises:
        GuardlitError: every update is on-policy, or RatioNorm was given a baseline's range.
    """
    complaint = clip_never_acts(objective, plan, elements)
    if complaint is not None:
        raise GuardlitError(complaint)


def check_fraction(name: str, value: float) -> float:
    """A number that lies in [0, 1]; raises `GuardlitError` for any other."""
    if not 0 <= value <= 1:
        raise GuardlitError(f"{name}={value} must lie in [0, 1]")
    return value


def optimizer_of(make: Callable[[Sequence[Tensor]], Optimizer], parameters: Sequence[Tensor]) -> Optimizer:
    """An optimizer of the configuration's making; a setting that it refuses, or a rate that is no number, is one line.

    Args:
        make: the configuration's, which knows its settings.
        parameters: what trains.

    Raises:
        GuardlitError: naming the setting.
    """
    with as_one_line("model.optimizer"):
        optimizer = make(parameters)
    for group in optimizer.param_groups:
        at_least(0, **{"model.optimizer: lr": float(group["lr"])})
    return optimizer


def check_noise(coefficients: Coefficients, train_steps: int, sampler: str) -> None:
    """Refuse trained steps that draw no noise: raises `GuardlitError`, naming the sampler and the steps."""
    silent = (coefficients.std[:train_steps] <= 0).nonzero().flatten().tolist()
    if silent:
        raise GuardlitError(
            f"{sampler} draws no noise at trained steps {silent}: the ratio does not exist there; "
            "raise its noise_level or lower rollout.timestep_fraction"
        )


def rounding_bounds(objective: Objective, elements: int) -> tuple[float, float]:
    """Bounds of the log ratios that rounding is measured against: the clip range.

    As long as that is still to be calibrated, by log ratios themselves, there is no room for rounding at all.
    """
    return (0.0, 0.0) if objective.auto and objective.clip_range is None else objective.log_bounds(elements)


def sizes_by_step(outputs: Sequence[Outputs], steps: int, gather: Gather) -> dict[int, float]:
    """Root mean square of the log ratio at every denoising step that there is, over all processes; a collective."""
    squares = torch.cat([o["log_ratio"] for o in outputs]).double().square()
    step = torch.cat([o["step"] for o in outputs]).long()
    sums = squares.new_zeros(2, steps).index_add_(1, step, torch.stack([squares, torch.ones_like(squares)]))
    total, count = gather(sums).sum(dim=0)
    return {s: math.sqrt(total[s] / count[s]) for s in count.nonzero().flatten().tolist()}


def noise_floor(
    outputs: Sequence[Outputs], bounds: tuple[float, float], steps: int, gather: Gather
) -> tuple[str, bool]:
    """How far two forward passes of unchanged weights are apart, beside the clip range. A collective.

    Args:
        outputs: of the run's first update, before the weights have moved; those of this process.
        bounds: of the log ratio.
        steps: S, trained denoising steps.
        gather: rows of every process, (n, ...) -> (world, n, ...).

    Returns:
        A line with the root mean square of the log ratio at every step, over all processes, and whether the largest
        exceeds half of the clip range; the same on every process.
    """
    sizes = sizes_by_step(outputs, steps, gather)
    limit = min(-bounds[0], bounds[1])
    listed = " ".join(f"{s}:{size:.1e}" for s, size in sizes.items())
    clip = f"clip range {limit:.1e}" if limit else "no clip range yet"
    line = f"noise floor of the log ratio by step, before the first update: {listed}; {clip}"
    return line, max(sizes.values()) > limit / 2


def report_noise_floor(outputs: Sequence[Outputs], bounds: tuple[float, float], steps: int, gather: Gather) -> None:
    """Log the noise floor, and warn with the remedy where it decides what is clipped; arguments as `noise_floor`."""
    line, too_high = noise_floor(outputs, bounds, steps, gather)
    rank_zero_info(line)
    if too_high:
        rank_zero_warn(
            "the noise floor exceeds half of the clip range: rounding alone decides what is clipped. Take a more "
            "precise trainer.precision (32-true, or 16-mixed before bf16-mixed) or model.old_velocity: recomputed"
        )
