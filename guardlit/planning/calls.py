"""Forward passes of the policy that sampling an image takes."""

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
    """A stand-in for a policy that counts the rows of its calls."""

    rows = 0

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """Zeros (B, ...)."""
        self.rows += len(latents)
        return torch.zeros_like(latents)


def calls_per_image(run: PlannedRun) -> float:
    """Forward passes per image: T, or fewer while the images of a group are still identical."""
    rollout, plan = run.module.rollout, run.plan
    if rollout.initial_noise == "sample":
        return float(rollout.num_inference_steps)
    prompts = [Prompt("")] * plan.prompts_per_round
    round = Round(0, prompts, [], plan, run.data.seed, 0, rollout.window, rollout.available_steps)
    # noise in every step: the window selects the steps that draw it
    coefficients = replace(ODE().coefficients(torch.linspace(1, 0, rollout.num_inference_steps + 1)))
    coefficients = replace(coefficients, std=torch.ones_like(coefficients.std))
    calls, group = _Calls(), plan.images_per_prompt
    for start in range(0, len(round.samples), run.rollout_batch):
        samples: Sequence[int] = round.samples[start : start + run.rollout_batch]
        origins = [i // group * group for i in samples]
        noisy = round.noisy_steps(samples, len(coefficients))
        stand_in, noise = cast("FlowPolicy", calls), NoiseSource(0, 0, (1,))
        rows = {"": torch.zeros(len(samples))}
        sample(stand_in, coefficients, rows, noise, samples, 1.0, noisy=noisy, origins=origins)
    return calls.rows / plan.local_images
