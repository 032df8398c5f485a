"""One round: draw the images, score them, turn scores into advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.experience import Experience, Round
from guardlit.noise import EVALUATION, NoiseSource
from guardlit.phases import announce
from guardlit.rollout import sample
from guardlit.sde import SDE
from guardlit.settings import Sampling
from guardlit.types import Conditioning, Prompt, RewardRequest, RewardResult, Trajectory

if TYPE_CHECKING:
    from guardlit.module import GRPOModule


class Collector:
    """Collects one round for a module.

    Args:
        module: policy, reward and settings.
        round: what to collect.
        batch_size: images drawn at once.
    """

    def __init__(self, module: GRPOModule, round: Round, batch_size: int) -> None:
        self._module, self._round = module, round
        self._batches = [round.samples[i : i + batch_size] for i in range(0, len(round.samples), batch_size)]
        self._coefficients = module.coefficients()
        self._steps_done = 0

    def collect(self) -> Experience:
        """Draw and score this process's images, and judge those of all."""
        module, round = self._module, self._round
        texts = [p.text for p in round.prompts]
        announce(module.trainer, "encode", 0, len(texts))
        module.policy.encode(texts, round.ahead)
        conditioning = module.policy.conditioning(texts)
        trajectories, results = [], []
        started, reward_seconds = time.perf_counter(), 0.0
        with module.policy.using("old"):
            for samples in self._batches:
                trajectory = self._draw(samples, conditioning)
                images = module.policy.decode(trajectory.final)
                scoring = _now(images.device)
                results.append(self._score(images, samples))
                reward_seconds += _now(images.device) - scoring
                trajectories.append(trajectory)
        rewards = self._gather(results)
        failed = self._check_failures(rewards)
        advantages = module.advantage(rewards, round.group_ids, module.reward.weights or None)
        seconds = {"time/rollout_s": time.perf_counter() - started - reward_seconds, "time/reward_s": reward_seconds}
        return Experience(
            round=round,
            latents=torch.cat([t.latents for t in trajectories]),
            velocity=torch.cat([t.velocity for t in trajectories]),
            advantage=advantages.values,
            mask=advantages.mask,
            metrics=_reward_metrics(rewards)
            | seconds
            | {"reward/failed": failed, "reward/zero_std_share": advantages.zero_std_share},
            conditioning=conditioning,
            coefficients=self._coefficients,
        )

    def _draw(self, samples: list[int], conditioning: Conditioning) -> Trajectory:
        module, round = self._module, self._round
        prompt = torch.tensor(samples) // round.plan.images_per_prompt
        table = {name: t[prompt.to(t.device)] for name, t in conditioning.items()}
        noise = NoiseSource(round.seed, round.index, module.policy.latent_shape)
        group = round.plan.images_per_prompt
        shared = module.rollout.initial_noise == "group"
        with module.trainer.precision_plugin.forward_context():
            return sample(
                module.policy,
                self._coefficients,
                table,
                noise,
                samples,
                module.rollout.guidance_scale,
                record=round.trained_steps[samples],
                noisy=round.noisy_steps(samples, len(self._coefficients)),
                origins=[i // group * group for i in samples] if shared else samples,
                tick=self._tick,
            )

    def _tick(self) -> None:
        self._steps_done += 1
        announce(self._module.trainer, "rollout", self._steps_done, len(self._coefficients) * len(self._batches))

    def _score(self, images: Tensor, samples: list[int]) -> RewardResult:
        announce(self._module.trainer, "reward", 0, len(samples))
        prompts = [self._round.prompt_of(s) for s in samples]
        request = RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])
        return self._module.scorer().score(request)

    def _gather(self, results: list[RewardResult]) -> dict[str, Tensor]:
        """Rewards of all processes by image, (N,) float32 each on the CPU; NaN where one failed."""
        values = [torch.where(r.valid, r.values, torch.nan) for r in results]
        named = {self._module.reward.name: torch.cat(values)}
        if self._module.reward.weights:
            named = {name: torch.cat([r.details[name] for r in results]) for name in self._module.reward.weights}
        gathered = {name: self._module.gather(values.to(self._module.device)) for name, values in named.items()}
        return {name: self._round.by_image(values).float().cpu() for name, values in gathered.items()}

    def _check_failures(self, rewards: dict[str, Tensor]) -> float:
        """Share of images with a failed reward; every process sees all rewards, so that all stop together."""
        weights = self._module.reward.weights or dict.fromkeys(rewards, 1.0)
        trained = torch.stack([rewards[name] for name, weight in weights.items() if weight != 0])
        failed = ~torch.isfinite(trained).all(0)
        share = float(failed.double().mean())
        if share > self._module.max_failed_fraction:
            first = int(failed.nonzero()[0])
            prompt = self._round.prompt_of(first).text
            raise GuardlitError(
                f"round {self._round.index}: {int(failed.sum())} of {len(failed)} rewards failed, more than "
                f"max_failed_fraction={self._module.max_failed_fraction}; the first on prompt '{prompt[:80]}'"
            )
        return share

    @staticmethod
    @torch.no_grad()
    def evaluate(
        module: GRPOModule, sde: SDE, sampling: Sampling, prompts: Sequence[Prompt], indices: Sequence[int]
    ) -> Tensor:
        """One image a prompt with fixed noise, (B, 3, height, width) uint8."""
        texts = [p.text for p in prompts]
        module.policy.encode(texts)
        coefficients = sde.coefficients(module.policy.sigmas(sampling.num_inference_steps))
        noise = NoiseSource(0, EVALUATION, module.policy.latent_shape)  # the same in runs of every seed
        conditioning = module.policy.conditioning(texts)
        drawn = sample(module.policy, coefficients, conditioning, noise, indices, sampling.guidance_scale)
        return module.policy.decode(drawn.final)


def _now(device: torch.device) -> float:
    """The clock, once a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reward_metrics(rewards: dict[str, Tensor]) -> dict[str, float]:
    metrics = {}
    for name, values in rewards.items():
        finite = values[torch.isfinite(values)].double()
        metrics[f"reward/{name}_mean"] = float(finite.mean())
        metrics[f"reward/{name}_std"] = float(finite.std(correction=0))
    return metrics
