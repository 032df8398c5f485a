"""One round: draw the images, score them, turn scores into advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardlit.devices.transfer import Trajectories, to_device
from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.phases import announce
from guardlit.processes.world import World
from guardlit.rounds.experience import Experience
from guardlit.rounds.merging import Merging, evaluating
from guardlit.rounds.noise import EVALUATION, NoiseSource
from guardlit.rounds.old_policy import rows_a_call
from guardlit.rounds.rollout import VelocityError, sample
from guardlit.rounds.round import Round
from guardlit.rounds.round_rewards import RoundRewards
from guardlit.rounds.scoring import Scoring
from guardlit.rounds.settings import Sampling
from guardlit.sde import SDE
from guardlit.types import Conditioning, Prompt, RewardRequest, Trajectory

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule


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
        self._velocities = module.old.keeps(rows_a_call(len(round.samples), batch_size), round.plan.micro_batch)
        self._world = World.of(module.trainer)
        self._steps_done = 0

    def collect(self) -> Experience:
        """Draw and score this process's images, and judge those of all.

        The metrics of the round, N images:
            `reward/NAME_mean`, `reward/NAME_std`: raw scores by scorer; of a composite also its weighted sum.
            `reward_normalized/NAME_mean`, `..._std`: of terms with a normaliser.
            `reward/failed`: share of the images whose reward failed; `reward/NAME_failed`: of a composite's terms.
            `reward/NAME/COUNTER`: what the scorer counts, over all processes.
            `reward/zero_std_share`: share of the groups without a spread.
            `time/reward_s`: seconds that the run spent on scoring or waited for it.
            `time/reward_hidden_s`: seconds of scoring that ran beside the drawing, by the busiest scorer.
            `time/rollout_s`: the rest of the seconds.
        """
        module, round = self._module, self._round
        texts = [p.text for p in round.prompts]
        announce(module.trainer, "encode", 0, len(texts))
        module.policy.encode_across_ranks(texts, round.ahead)
        announce(module.trainer, "encode", len(texts), len(texts))
        conditioning = module.policy.conditioning(texts)
        kept: Trajectories | None = None
        started = time.perf_counter()
        with Scoring(module.reward_runner.ready(), round.index, self._together) as self._scoring:
            with module.policy.using("old"), Merging(module, round, self._coefficients, self._batches) as merging:
                drawn = 0
                for samples in self._batches:
                    trajectory = self._drawn(samples, conditioning)
                    if kept is None:
                        kept = Trajectories.room(len(round.samples), trajectory, module.rollout.trajectories)
                    kept.put(drawn, trajectory)
                    drawn += len(samples)
                    self._scoring.submit(self._request(trajectory, samples))
                    merging.drew(samples, trajectory, partial(self._table, samples, conditioning))
            results = self._scoring.gather()
        assert kept is not None
        seconds = time.perf_counter() - started
        rewards = RoundRewards(module.reward, module.advantage, module.max_failed_fraction, round, self._world)
        advantages, metrics = rewards.finish(self._batches, results)
        return Experience(
            round=round,
            trajectories=kept,
            advantage=advantages.values,
            mask=advantages.mask,
            metrics={
                "time/rollout_s": seconds - self._scoring.waited,
                "time/reward_s": self._scoring.waited,
                "time/reward_hidden_s": self._scoring.hidden,
            }
            | metrics
            | merging.metrics,
            conditioning=conditioning,
            coefficients=self._coefficients,
        )

    def _drawn(self, samples: list[int], conditioning: Conditioning) -> Trajectory:
        """Draw a batch; where one process cannot, all of them say so before anything of it is scored."""
        try:
            return self._draw(samples, conditioning)
        except VelocityError as error:
            prompt = self._round.prompt_of(samples[error.row]).text
            self._together(False, _told(error, prompt))
            raise

    def _draw(self, samples: list[int], conditioning: Conditioning) -> Trajectory:
        module, round = self._module, self._round
        table = self._table(samples, conditioning)
        noise = NoiseSource(round.seed, round.index, module.policy.latent_shape)
        group = round.plan.images_per_prompt
        shared = module.rollout.initial_noise == "group"
        steps = len(self._coefficients)
        noisy = round.noisy_steps(samples, steps)
        if not module.sde.noise_at_end and module.rollout.available_steps < steps:
            noisy[:, -1] = False
        with module.trainer.precision_plugin.forward_context():
            return sample(
                module.policy,
                self._coefficients,
                table,
                noise,
                samples,
                module.rollout.guidance_scale,
                record=round.trained_steps[samples],
                noisy=noisy,
                origins=[i // group * group for i in samples] if shared else samples,
                velocities=self._velocities,
                tick=self._tick,
            )

    def _table(self, samples: Sequence[int], conditioning: Conditioning) -> Conditioning:
        """Embeddings of the images' prompts, leading dimension B."""
        device = next(iter(conditioning.values())).device
        prompt = to_device(torch.tensor(samples) // self._round.plan.images_per_prompt, device)
        return {name: table[prompt] for name, table in conditioning.items()}

    def _tick(self) -> None:
        self._steps_done += 1
        announce(self._module.trainer, "rollout", self._steps_done, len(self._coefficients) * len(self._batches))

    def _request(self, trajectory: Trajectory, samples: list[int]) -> RewardRequest:
        prompts = [self._round.prompt_of(s) for s in samples]
        images = self._module.policy.decode(trajectory.final)
        return RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])

    def _together(self, ready: bool, error: GuardlitError | None) -> bool:
        """Let a signal through, stop all processes where one cannot go on, and ask whether all are ready."""
        announce(self._module.trainer, "reward", self._scoring.done, len(self._batches))
        if error is not None:
            error.args = (f"round {self._round.index}, rank {self._round.rank}: {error}",)
        self._world.raise_on_all(error)
        return self._world.all(ready)

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
        try:
            with evaluating(module):
                final = sample(module.policy, coefficients, conditioning, noise, indices, sampling.guidance_scale).final
        except VelocityError as error:
            module.reward_runner.fail(_told(error, texts[error.row]), deferred=module.trainer.validating)
            final = torch.zeros(len(texts), *module.policy.latent_shape, device=module.device)
        return module.policy.decode(final)


def _told(error: VelocityError, prompt: str) -> NonFiniteError:
    """The same with the prompt, and what to do."""
    remedy = "the weights are broken, or the precision overflows (bf16-mixed and 32-true do not)"
    return NonFiniteError(f"{error}, prompt '{prompt[:80]}': {remedy}")
