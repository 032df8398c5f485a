"""Collecting a round: what the module gives to the collector, and the round that is trained on."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from guardlit.advantage import GroupAdvantage
from guardlit.objective import Objective
from guardlit.policies.base import FlowPolicy
from guardlit.processes.phases import announce
from guardlit.processes.world import World
from guardlit.rounds.collector import Collector
from guardlit.rounds.experience import Experience
from guardlit.rounds.old_policy import OldPolicy
from guardlit.rounds.reward_runner import RewardRunner
from guardlit.rounds.round import Round
from guardlit.rounds.settings import Rollout
from guardlit.rounds.setup import RoundSetup
from guardlit.sde import SDE, Coefficients
from guardlit.training.limits import settings
from guardlit.training.update.penalty import Penalty


class RoundHooks(pl.LightningModule):
    """Collects and restores rounds; a base class of the module.

    Attributes:
        policy: the model.
        sde: sampler of the rollout.
        objective: whose ratio a merged adapter must leave alone.
        advantage: how rewards become advantages.
        rollout: how training images are drawn.
        max_failed_fraction: of a round's rewards; more failed ones stop the run.
        old: where the old policy's velocities come from.
        penalty: the KL penalty, whose gate and reference change from round to round.
        reward_runner: scores the images.
        round_metrics: of the round in progress; progress bars show them.
        outputs: of the update in progress, by micro-batch.
        clips: clip fractions of the round's updates so far, () each.
    """

    policy: FlowPolicy
    sde: SDE
    objective: Objective
    advantage: GroupAdvantage
    rollout: Rollout
    max_failed_fraction: float
    old: OldPolicy
    penalty: Penalty
    reward_runner: RewardRunner
    round_metrics: dict[str, float]
    outputs: list[dict[str, Tensor]]
    clips: list[Tensor]
    _was_merged: bool | None = None
    _experience: Experience | None = None
    _collected = 0.0

    @property
    def experience(self) -> Experience:
        """The round that was collected last."""
        assert self._experience is not None
        return self._experience

    @property
    def round_index(self) -> int:
        """Index of the round that was collected last."""
        return self.experience.round.index

    def coefficients(self) -> Coefficients:
        """Of the rollout's sampler on the model's schedule; raises `GuardlitError` for a trained step without noise."""
        coefficients = self.sde.coefficients(self.policy.sigmas(self.rollout.num_inference_steps))
        settings.check_noise(coefficients, self.rollout.available_steps, type(self.sde).__name__)
        return coefficients

    def round_setup(self) -> RoundSetup:
        """The values that a round of this run is collected with."""
        precision, coefficients = self.trainer.precision_plugin, self.coefficients()
        return RoundSetup(
            policy=self.policy,
            reward=self.reward_runner.ready(),
            objective=self.objective,
            rollout=self.rollout,
            coefficients=coefficients,
            advantage=self.advantage,
            noise_at_end=self.sde.noise_at_end,
            max_failed_fraction=self.max_failed_fraction,
            keeps_velocities=self.old.keeps,
            half_precision=self.policy.forward_dtype is not None or "mixed" in str(precision.precision),
            forward_context=precision.forward_context,
            was_merged=self._was_merged,
            gating=self.penalty.gating,
            kl_steps=self.penalty.steps(len(coefficients)),
        )

    def collect(self, round: Round, batch_size: int) -> Experience:
        """Draw and score one round, at the start of a Lightning epoch. Collective: every rank must call it."""
        self.penalty.begin_round(self.policy, round.index)
        self.policy.refresh_old()
        self.outputs, self.clips = [], []  # left over where the Trainer cut the last round short
        self._experience = None  # frees its trajectories before the new ones are drawn
        try:
            collector = Collector(
                self.round_setup(), World.of(self.trainer), round, batch_size, partial(announce, self.trainer)
            )
            experience = collector.collect()
        except BaseException:
            self.reward_runner.close()  # ends what still scores in the background
            raise
        if (merged := experience.metrics.get("rollout/merged")) is not None:
            self._was_merged = bool(merged)
        return self._begin(experience)

    def _begin(self, experience: Experience) -> Experience:
        self._experience = experience
        self.round_metrics = {**experience.metrics, **self.penalty.metrics(experience)}
        self._collected, self.old.first_update = time.perf_counter(), experience.round.plan.micro_batches_per_update
        return experience

    def restore_experience(self, state: Any, round: Round) -> Experience:
        """Restore a round in progress from a checkpoint."""
        self.policy.encode_across_ranks([p.text for p in round.prompts], round.ahead)
        conditioning = self.policy.conditioning([p.text for p in round.prompts])
        place, keep, coefficients = self.rollout.trajectories, self.old.restores(state), self.coefficients()
        steps = self.penalty.steps(len(coefficients))
        return self._begin(Experience.restore(state, round, conditioning, coefficients, place, keep, steps))
