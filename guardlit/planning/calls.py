"""How often drawing an image asks the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from guardlit.planning.run import PlannedRun
from guardlit.policies.base import FlowPolicy
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.rollout import sample
from guardlit.rounds.round import Round
from guardlit.sde import ODE
from guardlit.types import Conditioning, Prompt


class _Calls:
    """Stands in for a policy, to count how many rows it is asked about."""

    rows = 0

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """Zeros (B, ...)."""
        self.rows += len(latents)
        return torch.zeros_like(latents)


def calls_per_image(run: PlannedRun) -> float:
    """Calls of the policy that drawing an image takes: T, or fewer while the images of a group are still one."""
    rollout, plan = run.module.rollout, run.plan
    if rollout.initial_noise == "sample":
        return float(rollout.num_inference_steps)
    prompts = [Prompt("")] * plan.prompts_per_round
    round = Round(0, prompts, [], plan, run.data.seed, 0, rollout.window, rollout.available_steps)
    # as noisy as a sampler can be: which of its steps draw noise, the window decides
    coefficients = replace(ODE().coefficients(torch.linspace(1, 0, rollout.num_inference_steps + 1)))
    coefficients = replace(coefficients, std=torch.ones_like(coefficients.std))
    calls, group = _Calls(), plan.images_per_prompt
    for start in range(0, len(round.samples), run.data.rollout_batch):
        samples: Sequence[int] = round.samples[start : start + run.data.rollout_batch]
        origins = [i // group * group for i in samples]
        noisy = round.noisy_steps(samples, len(coefficients))
        stand_in, noise = cast("FlowPolicy", calls), NoiseSource(0, 0, (1,))
        rows = {"": torch.zeros(len(samples))}
        sample(stand_in, coefficients, rows, noise, samples, 1.0, noisy=noisy, origins=origins)
    return calls.rows / plan.local_images
