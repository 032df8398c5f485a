"""Policies in half precision, and their errors against float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from families import FAMILIES, PROMPTS
from torch import Tensor
from velocities import disturb

from guardlit.policies import DiffusersPolicy
from guardlit.rounds.noise import NoiseSource


def velocity(policy: DiffusersPolicy, guidance: float = 2.0) -> Tensor:
    """At timesteps and a scale that are exact in half precision times 1000, as the FLUX family embeds them."""
    x = NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0)
    return policy.velocity(x, torch.tensor([0.5, 0.25]), policy.conditioning(PROMPTS), guidance)


def gradient(policy: DiffusersPolicy, calls: int = 1) -> Tensor:
    """The gradient of `calls` micro-batches, as one vector."""
    policy.zero_grad()
    for _ in range(calls):
        velocity(policy).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])


def error(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).detach().norm() / reference.detach().norm())


def sd3(tiny: Callable[[str], Path], **options: object) -> DiffusersPolicy:
    torch.manual_seed(0)
    policy = FAMILIES["sd3"].load(tiny("sd3"), **{"weights_dtype": "bf16", **options})
    disturb(policy)
    return policy
