"""Sampling: a policy, a sampler's coefficients and noise give trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guardlit.noise import INITIAL, NoiseSource
from guardlit.policies.base import FlowPolicy
from guardlit.sde import Coefficients
from guardlit.types import Conditioning, Trajectory


@torch.no_grad()
def sample(
    policy: FlowPolicy,
    coefficients: Coefficients,
    conditioning: Conditioning,
    noise: NoiseSource,
    samples: Sequence[int],
    guidance_scale: float,
    record: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Trajectory:
    """Draw one batch of images' latents.

    Args:
        policy: gives the velocity.
        coefficients: T steps, falling to sigma = 0.
        conditioning: embeddings, leading dimension B, on the policy's device.
        noise: where initial and step noise come from.
        samples: indices of the B images in their round.
        guidance_scale: 1 for none.
        record: how many of the first steps to keep for training, S.
        tick: called after every step, for a progress bar and to let a signal through.

    Returns:
        States and velocities of the recorded steps, (B, S, C, H, W) float32, and the clean latents.
    """
    device = next(iter(conditioning.values())).device
    x = noise.draw(samples, INITIAL).to(device)
    states, velocities = [], []
    a, g, s = (column.tolist() for column in (coefficients.sample, coefficients.velocity, coefficients.std))
    for step, sigma in enumerate(coefficients.sigmas[:-1].tolist()):
        t = torch.full((len(samples),), sigma, device=device, dtype=torch.float32)
        v = policy.velocity(x, t, conditioning, guidance_scale)
        if step < record:
            states.append(x)
            velocities.append(v)
        x = a[step] * x + g[step] * v
        if s[step] > 0:
            x = x + s[step] * noise.draw(samples, step).to(device, non_blocking=True)
        tick()
    return Trajectory(_stack(states, x), _stack(velocities, x), x)


def _stack(steps: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(steps, dim=1) if steps else like.new_empty(len(like), 0, *like.shape[1:])
