"""The noise floor: log ratios that rounding alone makes, before any weight has moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from guardlit.surrogate import Objective

Outputs = Mapping[str, Tensor]
Gather = Callable[[Tensor], Tensor]


def bounded(output: Outputs) -> Tensor:
    """What the objective's bound limits, (B,); outputs in checkpoints of earlier versions hold the log ratio alone."""
    return output["bounded"] if "bounded" in output else output["log_ratio"].abs()


def rounding_limit(objective: Objective, elements: int) -> float:
    """The size that the noise floor is compared with: the clip range's.

    A clip range that is still to be calibrated, from log ratios themselves, leaves no room for rounding at all.
    """
    limit = objective.bound.limit(elements)
    return 0.0 if objective.auto and math.isinf(limit) else limit


def sizes_by_step(outputs: Sequence[Outputs], steps: int, gather: Gather) -> dict[int, float]:
    """Root mean square of what is bounded at every denoising step with a transition. Collective, as `noise_floor`."""
    squares = torch.cat([bounded(o) for o in outputs]).double().square()
    step = torch.cat([o["step"] for o in outputs]).long()
    sums = squares.new_zeros(2, steps).index_add_(1, step, torch.stack([squares, torch.ones_like(squares)]))
    total, count = gather(sums).sum(dim=0)
    return {s: math.sqrt(total[s] / count[s]) for s in count.nonzero().flatten().tolist()}


def noise_floor(
    outputs: Sequence[Outputs], limit: float, steps: int, gather: Gather, what: str = "log ratio"
) -> tuple[str, bool]:
    """RMS of what is bounded per step before the first update, against the limit. Collective: all ranks must call it.

    Args:
        outputs: this rank's micro-batches of an update, before the weights have moved.
        limit: of the log ratio's size, or of the KL; 0 for none yet.
        steps: denoising steps that can be trained.
        gather: rows of every rank, (n, ...) -> (world size, n, ...).
        what: is bounded, in words.

    Returns:
        A line with the root mean square at every step, over all ranks, and whether the largest exceeds half of the
        limit; the same on every rank.
    """
    sizes = sizes_by_step(outputs, steps, gather)
    listed = " ".join(f"{s}:{size:.1e}" for s, size in sizes.items())
    clip = f"clip range {limit:.1e}" if limit else "no clip range yet"
    line = f"noise floor of the {what} by step, before the first update: {listed}; {clip}"
    return line, max(sizes.values()) > limit / 2


def report_noise_floor(
    outputs: Sequence[Outputs], limit: float, steps: int, gather: Gather, what: str = "log ratio"
) -> None:
    """Log the noise floor, and warn with the remedy where it decides what is clipped; arguments as `noise_floor`."""
    line, too_high = noise_floor(outputs, limit, steps, gather, what)
    rank_zero_info(line)
    if too_high:
        rank_zero_warn(
            "the noise floor exceeds half of the clip range: rounding alone decides what is clipped. Take a more "
            "precise trainer.precision (32-true, or 16-mixed before bf16-mixed) or model.old_velocity: recomputed"
        )
