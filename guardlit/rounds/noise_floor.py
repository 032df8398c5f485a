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


def rounding_bounds(objective: Objective, elements: int) -> tuple[float, float]:
    """Bounds of the log ratio that the noise floor is compared with: the clip range.

    A clip range that is still to be calibrated, from log ratios themselves, leaves no room for rounding at all.
    """
    return (0.0, 0.0) if objective.auto and objective.clip_range is None else objective.log_bounds(elements)


def sizes_by_step(outputs: Sequence[Outputs], steps: int, gather: Gather) -> dict[int, float]:
    """Root mean square of the log ratio at every denoising step with a transition. Collective, as `noise_floor`."""
    squares = torch.cat([o["log_ratio"] for o in outputs]).double().square()
    step = torch.cat([o["step"] for o in outputs]).long()
    sums = squares.new_zeros(2, steps).index_add_(1, step, torch.stack([squares, torch.ones_like(squares)]))
    total, count = gather(sums).sum(dim=0)
    return {s: math.sqrt(total[s] / count[s]) for s in count.nonzero().flatten().tolist()}


def noise_floor(
    outputs: Sequence[Outputs], bounds: tuple[float, float], steps: int, gather: Gather
) -> tuple[str, bool]:
    """RMS log ratio per step before the first update, against the clip range. Collective: every rank must call it.

    Args:
        outputs: this rank's micro-batches of an update, before the weights have moved.
        bounds: of the log ratio.
        steps: denoising steps that can be trained.
        gather: rows of every rank, (n, ...) -> (world size, n, ...).

    Returns:
        A line with the root mean square at every step, over all ranks, and whether the largest exceeds half of the clip
        range; the same on every rank.
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
