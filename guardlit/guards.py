"""Checks that stop a run before it wastes time or spoils weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.experience import Round
from guardlit.lint import clip_never_acts
from guardlit.objective import Objective
from guardlit.plan import RoundPlan
from guardlit.sde import Coefficients

Outputs = Mapping[str, Tensor]
Gather = Callable[[Tensor], Tensor]


def check_precision(precision: str, sharded: bool = False) -> None:
    """Refuse a precision that would take what trains, noise and ratios out of float32, or that FSDP2 cannot scale."""
    if sharded and precision == "16-mixed":
        raise GuardlitError(
            "trainer.precision=16-mixed: its loss scaler does not work with trainer.strategy=fsdp; take bf16-mixed, "
            "with model.old_velocity=recomputed where the noise floor asks for it, or trainer.strategy=ddp"
        )
    if precision in ("16-true", "bf16-true"):
        raise GuardlitError(
            f"trainer.precision={precision} would train in half precision: take {precision.removesuffix('true')}mixed, "
            "and weights_dtype of the policy for storing what is frozen"
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


def check_noise(coefficients: Coefficients, train_steps: int, sampler: str) -> None:
    """Refuse trained steps that draw no noise: raises `GuardlitError`, naming the sampler and the steps."""
    silent = (coefficients.std[:train_steps] <= 0).nonzero().flatten().tolist()
    if silent:
        raise GuardlitError(
            f"{sampler} draws no noise at trained steps {silent}: the ratio does not exist there; "
            "raise its noise_level or lower rollout.timestep_fraction"
        )


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
    squares = torch.cat([o["log_ratio"] for o in outputs]).double().square()
    step = torch.cat([o["step"] for o in outputs]).long()
    sums = squares.new_zeros(2, steps).index_add_(1, step, torch.stack([squares, torch.ones_like(squares)]))
    total, count = gather(sums).sum(dim=0)
    sizes = {s: math.sqrt(total[s] / count[s]) for s in count.nonzero().flatten().tolist()}
    limit = min(-bounds[0], bounds[1])
    listed = " ".join(f"{s}:{size:.1e}" for s, size in sizes.items())
    line = f"noise floor of the log ratio by step, before the first update: {listed}; clip range {limit:.1e}"
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


def check_gradient(norm: Tensor, outputs: Sequence[Outputs], scaled: bool, update: int, round: Round) -> None:
    """Stop before NaN or infinity reaches the weights.

    Args:
        norm: of the update's gradient, ().
        outputs: of its micro-batches.
        scaled: whether a loss scaler is at work; it expects overflows in the backward pass, skips the step and lowers
            its scale. A loss that is not finite is a mistake all the same.
        update: index of the update in the run.
        round: the round it belongs to.

    Raises:
        GuardlitError: naming the round, the step and the prompt.
    """
    if bool(torch.isfinite(norm)):
        return
    finite = all(bool(torch.isfinite(o["loss"])) and bool(torch.isfinite(o["log_ratio"]).all()) for o in outputs)
    if not (scaled and finite):
        raise GuardlitError(blame(outputs, float(norm), update, round))


def blame(outputs: Sequence[Outputs], norm: float, update: int, round: Round) -> str:
    """Say where a gradient that is NaN or infinite came from.

    Args:
        outputs: of the update's micro-batches.
        norm: of the gradient.
        update: index of the update in the run.
        round: the round it belongs to.
    """
    what = f"gradient norm is {norm} at update {update}, round {round.index}"
    for output in outputs:
        finite = torch.isfinite(output["log_ratio"])
        if bool(finite.all()) and bool(torch.isfinite(output["loss"])):
            continue
        row = 0 if bool(finite.all()) else int((~finite).nonzero()[0])
        prompt = round.prompt_of(int(output["sample"][row])).text
        return (
            f"{what}: the loss is {float(output['loss'])} at denoising step {int(output['step'][row])}, "
            f"prompt '{prompt[:80]}'; the weights were not touched"
        )
    return f"{what}: the losses are finite, the backward pass is not; the weights were not touched"
