"""Adapters with an effect, and the velocity with them."""

from __future__ import annotations

import torch
from families import PROMPTS
from torch import Tensor

from guardlit.policies import DiffusersPolicy
from guardlit.rounds.noise import NoiseSource


@torch.no_grad()
def disturb(policy: DiffusersPolicy, size: float = 0.1) -> None:
    """Give the adapter an effect: initially it has none."""
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))), alpha=size)


def velocity(policy: DiffusersPolicy) -> Tensor:
    x = NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0)
    return policy.velocity(x, torch.tensor([0.9, 0.4]), policy.conditioning(PROMPTS), 1.0)
