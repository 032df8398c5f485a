"""Collects a round: draws the images, scores them, turns scores into advantages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from guardlit.devices.transfer import Trajectories, to_device
from guardlit.errors import GuardlitError
from guardlit.processes.phases import OnPhase, ignore
from guardlit.processes.world import World
from guardlit.rounds.experience import Experience
from guardlit.rounds.merging import Merging
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.old_policy import rows_a_call
from guardlit.rounds.rollout import VelocityError, sample
from guardlit.rounds.round import Round
from guardlit.rounds.round_rewards import RoundRewards, check_comparing
from guardlit.rounds.scoring import Scoring
from guardlit.rounds.setup import RoundSetup
from guardlit.types import Conditioning, RewardRequest, Trajectory


class Collector:
    """Collects one round with the old policy's weights.

    Args:
        setup: of the run.
        world: the ranks.
        round: what to collect.
        batch_size: images drawn at once.
        on_phase: called as encoding, drawing and scoring proceed.
    """

    def __init__(
        self, setup: RoundSetup, world: World, round: Round, batch_size: int, on_phase: OnPhase = ignore
    ) -> None:
        self._setup, self._world, self._round, self._on_phase = setup, world, round, on_phase
        self._batches = [round.samples[i : i + batch_size] for i in range(0, len(round.samples), batch_size)]
        rows = rows_a_call(len(round.samples), batch_size)
        self._velocities = setup.keeps_velocities(rows, round.plan.micro_batch)
        self._steps_done = 0
        check_comparing(setup.reward, round, len(self._batches), world.size)

    def collect(self) -> Experience:
        """Draw and score this rank's images; advantages are those of all ranks. Collective: every rank must call it.

        Logged at the end of a round:

        | key | unit |
        |---|---|
        | `average_reward/NAME` | mean raw score of the round, in the scorer's unit; of a composite also the sum |
        | `reward/NAME_std` | standard deviation of the round's raw scores, in the scorer's unit |
        | `reward_normalized/NAME_mean`, `reward_normalized/NAME_std` | of a composite's normalized terms, no unit |
        | `reward/failed` | fraction of the images whose reward failed, 0 to 1 |
        | `reward/NAME_failed` | fraction of the images that a composite's term failed to score, 0 to 1 |
        | `reward/NAME/COUNTER` | the scorer's counters, over all ranks; of scorers with such counters |
        | `reward/diversity` | mean cosine distance of an image to the nearest of its group, 0 to 2; with `diversity` |
        | `reward/zero_std_share` | fraction of the groups whose rewards are all equal, 0 to 1 |
        | `time/rollout_s` | s, of the round's collection without `time/reward_s` |
        | `time/reward_s` | s, that the run spent on scoring or waited for it |
        | `time/reward_hidden_s` | s, of scoring that overlapped with drawing, by the busiest scorer |
        """
        setup, round = self._setup, self._round
        texts = [p.text for p in round.prompts]
        self._on_phase("encode", 0, len(texts))
        setup.policy.encode_across_ranks(texts, round.ahead)
        self._on_phase("encode", len(texts), len(texts))
        conditioning = setup.policy.conditioning(texts)
        kept: Trajectories | None = None
        started = time.perf_counter()
        with Scoring(setup.reward, round.index, self._agree, setup.advantage.diversity) as self._scoring:
            with setup.policy.using("old"), Merging(setup, self._world, round, self._batches) as merging:
                drawn = 0
                for samples in self._batches:
                    trajectory = self._drawn(samples, conditioning)
                    if kept is None:
                        kept = Trajectories.room(len(round.samples), trajectory, setup.rollout.trajectories)
                    kept.put(drawn, trajectory)
                    drawn += len(samples)
                    self._scoring.submit(self._request(trajectory, samples))
                    merging.observe(samples, trajectory, partial(self._embeddings, samples, conditioning))
            results = self._scoring.gather()
        assert kept is not None
        seconds = time.perf_counter() - started
        times = {
            "time/rollout_s": seconds - self._scoring.waited,
            "time/reward_s": self._scoring.waited,
            "time/reward_hidden_s": self._scoring.hidden,
        }
        rewards = RoundRewards(setup.reward, setup.advantage, setup.max_failed_fraction, round, self._world)
        advantages, metrics = rewards.finish(self._batches, results)
        return Experience(
            round=round,
            trajectories=kept,
            advantage=advantages.values,
            mask=advantages.mask,
            metrics=times | metrics | merging.metrics,
            conditioning=conditioning,
            coefficients=setup.coefficients,
            kl_weight=rewards.kl_weight(setup.gating, results),
            kl_steps=setup.kl_steps,
        )

    def _drawn(self, samples: list[int], conditioning: Conditioning) -> Trajectory:
        """Draw a batch; where one rank cannot, all ranks raise its error before they score theirs."""
        try:
            return self._draw(samples, conditioning)
        except VelocityError as error:
            self._agree(False, error.with_prompt(self._round.prompt_of(samples[error.row]).text))
            raise

    def _draw(self, samples: list[int], conditioning: Conditioning) -> Trajectory:
        setup, round = self._setup, self._round
        group, steps = round.plan.images_per_prompt, len(setup.coefficients)
        noisy = round.noisy_steps(samples, steps)
        if not setup.noise_at_end and setup.rollout.available_steps < steps:
            noisy[:, -1] = False
        shared = setup.rollout.initial_noise == "group"
        with setup.forward_context():
            return sample(
                setup.policy,
                setup.coefficients,
                self._embeddings(samples, conditioning),
                NoiseSource(round.seed, round.index, setup.policy.latent_shape),
                samples,
                setup.rollout.guidance_scale,
                record=round.trained_steps[samples],
                noisy=noisy,
                origins=[i // group * group for i in samples] if shared else samples,
                velocities=self._velocities,
                tick=self._tick,
            )

    def _embeddings(self, samples: Sequence[int], conditioning: Conditioning) -> Conditioning:
        """Embeddings of the images' prompts, leading dimension B."""
        device = next(iter(conditioning.values())).device
        prompt = to_device(torch.tensor(samples) // self._round.plan.images_per_prompt, device)
        return {name: table[prompt] for name, table in conditioning.items()}

    def _tick(self) -> None:
        self._steps_done += 1
        self._on_phase("rollout", self._steps_done, len(self._setup.coefficients) * len(self._batches))

    def _request(self, trajectory: Trajectory, samples: list[int]) -> RewardRequest:
        prompts = [self._round.prompt_of(s) for s in samples]
        images = self._setup.policy.decode(trajectory.final)
        return RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])

    def _agree(self, ready: bool, error: GuardlitError | None) -> bool:
        """Announce the scoring, raise one rank's error on all, and return whether all ranks are ready. Collective."""
        self._on_phase("reward", self._scoring.done, len(self._batches))
        if error is not None:
            error.args = (f"round {self._round.number}, rank {self._round.rank}: {error}",)
        self._world.raise_on_all(error)
        return self._world.all(ready)
