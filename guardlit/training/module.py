"""The LightningModule: collects rounds and trains on them by automatic optimization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from guardlit_callbacks.distributed import gradient_norm
from jsonargparse import lazy_instance  # type: ignore[attr-defined]
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from guardlit.advantage import GroupAdvantage
from guardlit.config.lazy import unlazy
from guardlit.kl import KL
from guardlit.objective import GRPOGuard, Objective
from guardlit.policies.base import FlowPolicy
from guardlit.processes.lightning_internals import is_within_round, validate_now
from guardlit.processes.phases import announce
from guardlit.processes.world import World
from guardlit.rewards.base import Scorer
from guardlit.rewards.reward import Reward
from guardlit.rounds import merging
from guardlit.rounds.metrics import clip_fractions, finish_round, update_metrics
from guardlit.rounds.old_policy import OldPolicy, OldVelocity
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.reward_runner import RewardRunner
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import SDE, FlowSDE
from guardlit.training.checkpointing import CheckpointHooks
from guardlit.training.collecting import RoundHooks
from guardlit.training.data_loss.settings import DataLoss
from guardlit.training.data_loss.term import DataTerm
from guardlit.training.ddp import keep_quantized
from guardlit.training.limits import settings
from guardlit.training.linter import Linter
from guardlit.training.recovery.nonfinite import NonFiniteGuard
from guardlit.training.sharded_strategy import sharding
from guardlit.training.update.clip_calibration import ClipCalibration
from guardlit.training.update.loss_scale import fit_scale
from guardlit.training.update.micro_batch import largest_that_fits
from guardlit.training.update.optimizers import configured
from guardlit.training.update.penalty import Penalty
from guardlit.training.update.step import step_outputs
from guardlit.training.validation import ValidationHooks
from guardlit.types import Conditioning, Prompt, Transition


class GRPOModule(RoundHooks, ValidationHooks, CheckpointHooks):
    """Group-relative policy optimization of a flow-matching policy.

    Args:
        policy: the model.
        reward: the proxy that is trained on.
        sde: sampler of the rollout.
        objective: log ratio, step weight and bound.
        advantage: how rewards become advantages.
        rollout: how training images are drawn.
        evaluation: how validation images are drawn, by the Euler ODE.
        kl: penalty on the distance to the reference, the base model unless it is renewed; null for none.
        data_loss: flow-matching loss on images, which keeps the policy near them; null for none.
        optimizer: given the trainable parameters.
        lr_scheduler: stepped after every update; null keeps the learning rate.
        old_velocity: `stored` takes the rollout's velocities as the old policy's; `recomputed` calls the old policy
            again at the micro-batch's own shape, for networks whose output depends on it (half precision); `auto`
            stores them where rollout and training batches are equal and the noise floor allows it.
        max_failed_fraction: fraction of a round's rewards that may fail; above it the run stops.
        nonfinite: whether to `stop` before an update whose loss or gradient is NaN or infinite, or to `skip` it.
        max_skipped: consecutive updates that may be skipped; above it the run stops.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Scorer,
        sde: SDE = lazy_instance(FlowSDE),  # noqa: B008 - each module builds its own
        objective: Objective = lazy_instance(GRPOGuard),  # noqa: B008 - each module builds its own
        advantage: GroupAdvantage = GroupAdvantage(),  # noqa: B008 - frozen
        rollout: Rollout = Rollout(),  # noqa: B008 - frozen
        evaluation: Sampling = Sampling(),  # noqa: B008 - frozen
        kl: KL | None = None,
        data_loss: DataLoss | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        old_velocity: OldVelocity = "stored",
        max_failed_fraction: float = 0.01,
        nonfinite: Literal["stop", "skip"] = "stop",
        max_skipped: int = 3,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.reward = Reward.of(reward)
        if advantage.diversity is not None:
            self.reward.check_features(advantage.diversity)
        self.sde, self.objective, self.advantage = unlazy(sde), unlazy(objective), advantage
        self.rollout, self.evaluation, self.kl = rollout, evaluation, kl
        self.data_term = None if data_loss is None else DataTerm(data_loss)
        self.make_optimizer, self._make_scheduler = optimizer, lr_scheduler
        self.old_velocity = "recomputed" if old_velocity == "auto" and rollout.merge is True else old_velocity
        self.old = OldPolicy(self.old_velocity)
        self.penalty = Penalty(kl, self.reward, policy, rollout.trainable_range)
        self.max_failed_fraction = settings.check_fraction("max_failed_fraction", max_failed_fraction)
        self.nonfinite = NonFiniteGuard(nonfinite, max_skipped)
        self.strict_loading = False  # checkpoints hold only what trains
        self.reward_runner = RewardRunner(self.reward, World.single())
        self.validated = MeanMetric(nan_strategy="disable")
        self.round_metrics: dict[str, float] = {}
        """Of the round in progress; progress bars show them."""
        self.outputs: list[dict[str, Tensor]] = []
        self.clips: list[Tensor] = []

    # facts of the run ---------------------------------------------------------------------------------------------

    @property
    def world(self) -> World:
        """The ranks of the run."""
        return World.of(self.trainer)

    @property
    def plan(self) -> RoundPlan:
        """The batch arithmetic of a round."""
        return self.trainer.datamodule.plan  # type: ignore[attr-defined,no-any-return]

    @property
    def elements(self) -> int:
        """D, latent elements of a sample."""
        return math.prod(self.policy.latent_shape)

    @property
    def _untouched(self) -> bool:
        """Whether the run has made no update yet; skipped ones count as steps."""
        return self.global_step == self.nonfinite.skipped

    # set-up -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build the reward runner for this stage's ranks and device."""
        self.reward_runner = RewardRunner(self.reward, self.world)

    def configure_model(self) -> None:
        """Load the policy's weights; each rank loads its shard where they are sharded."""
        self.policy.load(sharding(self))
        keep_quantized(self)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The data term, the linter and, for `clip_range: auto`, the calibration, unless the Trainer has them."""
        needed = [Linter, ClipCalibration] if self.objective.auto else [Linter]
        given = self.trainer.callbacks  # type: ignore[attr-defined]
        own = [] if self.data_term is None else [self.data_term]
        return own + [kind() for kind in needed if not any(isinstance(callback, kind) for callback in given)]

    def configure_optimizers(self) -> Any:
        """The optimizer over the trainable parameters, and its schedule."""
        trained = [p for p in self.parameters() if p.requires_grad]
        updates = settings.run_length(self.trainer, self.plan)
        return configured(self.make_optimizer, self._make_scheduler, trained, updates)

    def on_fit_start(self) -> None:
        """Bind the schedule, load and test the reward, and refuse what cannot work, before anything is drawn."""
        settings.check_precision(str(self.trainer.precision), self.policy.forward_dtype)
        self.objective.bind(*self.coefficients().between(*self.rollout.trainable_range))
        self.trainer.datamodule.settle()  # type: ignore[attr-defined]
        fit_scale(self.trainer.precision_plugin, self.plan.micro_batches_per_update)
        merging.check(self.policy, self.rollout.merge)
        self.reward_runner.test(self.trainer.datamodule.train)  # type: ignore[attr-defined]

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise `GuardlitError` for a prompt that the reward can never score."""
        self.reward_runner.check_prompt(prompt)

    def largest_micro_batch(self, sizes: Sequence[int], conditioning: Conditioning) -> int:
        """The first of falling sizes that fits into memory on every rank. Collective: every rank must call it."""
        return largest_that_fits(self, self.trainer.precision_plugin.train_step_context, sizes, conditioning)

    def teardown(self, stage: str) -> None:
        """Release the reward's processes and connections."""
        self.reward_runner.close()

    def on_train_start(self) -> None:
        """Restore an update in progress, and draw the validation images of step 0."""
        self.restore_update()
        if self.trainer.global_step == 0 and not is_within_round(self.trainer):
            validate_now(self.trainer)

    # a micro-batch ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one micro-batch; the other entries, detached, are what callbacks read (B,)."""
        velocity, old = self.velocities(batch, batch_idx)
        reference = None if self.kl is None else self.other_velocity(batch, "reference")
        outputs = step_outputs(self.objective, batch, velocity, old, self.kl, reference)
        outputs |= self.old.compare(self.objective, batch, velocity, batch_idx)
        if self.data_term is not None:
            outputs |= self.data_term.add(outputs["loss"], self, batch, batch_idx)
        self.outputs.append({k: v.detach() for k, v in outputs.items()})
        return outputs

    def velocities(self, batch: Transition, batch_idx: int | None = None) -> tuple[Tensor, Tensor]:
        """The trained policy's velocity, with gradient, and the old policy's, (B, C, H, W) each."""
        velocity = self._velocity(batch)
        again = partial(self.other_velocity, batch, "old")
        return velocity, self.old.velocity(batch, velocity, batch_idx, self._untouched, again)

    def _velocity(self, batch: Transition) -> Tensor:
        return self.policy.velocity(batch.latents, batch.sigma, batch.conditioning, self.rollout.guidance_scale)

    def other_velocity(self, batch: Transition, weights: Literal["old", "reference"]) -> Tensor:
        """The velocity under other weights, (B, C, H, W) without gradient."""
        with self.policy.using(weights):
            return self._velocity(batch)

    # one update ---------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Check the update before the weights move, and log it."""
        norm, round = gradient_norm(self), self.experience.round
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if self.nonfinite.allows(self.outputs, norm, self.global_step, round, self.world, scaled):
            steps, gather = self.rollout.available_steps, self.world.gather
            self.old.before_update(self.outputs, self.objective, self.elements, steps, self._untouched, gather)
            if self.old.decided == "recomputed":
                self.experience.trajectories.velocity = None
        else:
            self.zero_grad(set_to_none=True)
        self.penalty.observe(self.outputs, self.world)
        self.clips.append(self.world.gather(torch.stack(clip_fractions(self.outputs)).sum()).mean())
        # here and not after the step: a checkpoint written then finds no update in progress
        self.log_dict(update_metrics(self.outputs, norm, self.nonfinite.skipped), batch_size=1, sync_dist=True)
        self.outputs = []

    def on_train_batch_end(self, outputs: Any, batch: Transition, batch_idx: int) -> None:
        """Announce how many micro-batches are done."""
        announce(self.trainer, "update", batch_idx + 1, self.plan.micro_batches)

    def on_train_epoch_end(self) -> None:
        """Log the round."""
        finish_round(self.round_metrics, self._collected, self.plan.images, self.round_index, self.clips)
        self.log_dict(self.round_metrics, batch_size=1, sync_dist=True)
