"""The loss of a micro-batch and the outputs that callbacks read."""

from __future__ import annotations

import torch
from torch import Tensor

from guardlit.kl import KL, kl_divergence
from guardlit.surrogate import Objective
from guardlit.types import Transition


def step_outputs(
    objective: Objective,
    batch: Transition,
    velocity: Tensor,
    old_velocity: Tensor,
    kl: KL | None = None,
    reference_velocity: Tensor | None = None,
) -> dict[str, Tensor]:
    """The output contract of a training step.

    Args:
        objective: log ratio, step weight and clip.
        batch: of B transitions.
        velocity: the trained policy's, (B, C, H, W), with gradient.
        old_velocity: the old policy's, (B, C, H, W).
        kl: penalty; null for none.
        reference_velocity: the reference's, (B, C, H, W); needed for a penalty.

    Returns:
        `loss`, (), with gradient; `log_ratio`, `raw_log_ratio`, `norm_log_ratio`, `clipped`, `bounded`, `advantage`,
        `sample_weight`, `timestep`, `step`, `sample`, `velocity_grad_norm` and, with a penalty, `kl`, the divergence
        without `kl_weight`, (B,) detached.
    """
    step = {"gain": batch.gain, "std": batch.std, "dt": batch.dt}
    weights = {"advantage": batch.advantage, "sample_weight": batch.sample_weight}
    out = objective(velocity, old_velocity, batch.noise, **weights, **step, step=batch.step)
    # the graph from the loss to the velocity is a few elementwise operations; the network is not touched
    (gradient,) = torch.autograd.grad(out.loss, velocity, retain_graph=True)
    outputs = {
        "loss": out.loss,
        "log_ratio": out.log_ratio,
        "raw_log_ratio": out.raw_log_ratio,
        "norm_log_ratio": out.norm_log_ratio,
        "clipped": out.clipped,
        "bounded": out.bounded,
        **weights,
        "timestep": batch.sigma,
        "step": batch.step,
        "sample": batch.sample,
        "velocity_grad_norm": len(batch) * gradient.flatten(1).norm(dim=1),
    }
    if kl is not None and reference_velocity is not None:
        divergence = kl_divergence(kl.kind, velocity, reference_velocity, **step)
        outputs["kl"] = divergence.detach()
        outputs["loss"] = out.loss + kl.weight * (batch.sample_weight * batch.kl_weight * divergence).mean()
    return outputs
