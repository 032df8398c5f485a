"""Validation images: drawn by the ODE from noise that no seed changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guardlit.policies.base import FlowPolicy
from guardlit.rounds.merging import Merge, evaluating
from guardlit.rounds.noise import EVALUATION, NoiseSource
from guardlit.rounds.rollout import VelocityError, sample
from guardlit.rounds.settings import Sampling
from guardlit.sde import ODE


@torch.no_grad()
def draw_fixed(
    policy: FlowPolicy, sampling: Sampling, prompts: Sequence[str], indices: Sequence[int], merge: Merge = "auto"
) -> Tensor:
    """Draw one image per prompt by the Euler ODE, with the same noise in every validation and run.

    Args:
        policy: the model, loaded.
        sampling: steps and guidance.
        prompts: B texts.
        indices: of the B images' initial noise.
        merge: whether an adapter is merged into the weights; see `Rollout.merge`.

    Returns:
        (B, 3, height, width) uint8.

    Raises:
        NonFiniteError: a velocity is NaN or infinite; names the prompt.
    """
    policy.encode(prompts)
    coefficients = ODE().coefficients(policy.sigmas(sampling.num_inference_steps))
    noise = NoiseSource(0, EVALUATION, policy.latent_shape)
    conditioning = policy.conditioning(prompts)
    try:
        with evaluating(policy, merge):
            final = sample(policy, coefficients, conditioning, noise, indices, sampling.guidance_scale).final
    except VelocityError as error:
        raise error.with_prompt(prompts[error.row]) from error
    return policy.decode(final)
