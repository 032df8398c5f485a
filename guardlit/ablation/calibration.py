"""Clip ranges of an analysis, where objectives leave them to calibration: those that clip a share of its rollout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardlit.objective import Objective
from guardlit.training.update.clip_calibration import FRACTION

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule
    from guardlit.types import Transition


@torch.no_grad()
def calibrate(module: GRPOModule, objectives: Sequence[Objective], batches: Iterable[Transition]) -> None:
    """Set the clip ranges of objectives with `clip_range: auto` or `auto_per_step`; does nothing for others.

    Args:
        module: in training, on the analyzed update.
        objectives: any.
        batches: all transitions of the rollout, in micro-batches.
    """
    waiting = [objective for objective in objectives if objective.auto]
    if not waiting:
        return
    sizes: list[list[Tensor]] = [[] for _ in waiting]
    steps = []
    for batch in batches:
        with module.trainer.precision_plugin.train_step_context():
            velocity, old = module.velocities(batch)
        counts = batch.sample_weight != 0
        steps.append(batch.step[counts].cpu())
        for objective, seen in zip(waiting, sizes, strict=True):
            facts = (batch.noise, batch.advantage, batch.gain, batch.std, batch.dt)
            out = objective(velocity, old, *facts, step=batch.step)
            seen.append(out.bounded[counts].double().cpu())
    step = torch.cat(steps)
    for objective, seen in zip(waiting, sizes, strict=True):
        _apply(objective, torch.cat(seen), step, module)


def _apply(objective: Objective, size: Tensor, step: Tensor, module: GRPOModule) -> None:
    if not objective.bound.per_step:
        if (limit := _limit(size)) is not None:
            objective.calibrate(limit, module.elements)
        return
    steps = range(module.rollout.num_inference_steps)
    limits = [_limit(size[step == index]) or math.inf for index in steps]
    objective.bound.calibrate_steps(limits, module.device)


def _limit(sizes: Tensor) -> float | None:
    """What the share of `ClipCalibration` exceeds; None where that is 0, or there are fewer than two."""
    if len(sizes) < 2:
        return None
    rising, last = sizes.sort().values, int((1 - FRACTION) * (len(sizes) - 1))
    # between two sizes: on one of them, rounding in the next forward pass would decide about it
    return float(rising[last : last + 2].mean()) or None
