"""The LightningModule: collects a round, and trains on it by automatic optimization."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from guardlit_callbacks.distributed.gradients import total_norm
from jsonargparse import lazy_instance  # type: ignore[attr-defined]
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric

from guardlit.advantage import GroupAdvantage
from guardlit.checkpoints import contents, unfinished
from guardlit.kl import KL, kl_divergence
from guardlit.objective import GRPOGuard, Objective
from guardlit.policies.base import FlowPolicy
from guardlit.processes.lightning_internals import move_within_epoch, validate_now
from guardlit.processes.phases import announce
from guardlit.processes.world import World
from guardlit.rewards.base import Scorer
from guardlit.rewards.reward import Reward
from guardlit.rounds import merging
from guardlit.rounds.collector import Collector
from guardlit.rounds.experience import Experience
from guardlit.rounds.metrics import finish_round, update_metrics
from guardlit.rounds.old_policy import OldPolicy, OldVelocity
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.reward_runner import RewardRunner, gold_scorers
from guardlit.rounds.round import Round
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import ODE, SDE, Coefficients, FlowSDE
from guardlit.training import checks as guards
from guardlit.training.clip_calibration import ClipCalibration
from guardlit.training.ddp import keep_quantized
from guardlit.training.loss_scale import fit_scale
from guardlit.training.micro_batch import largest_that_fits
from guardlit.training.nonfinite import NonFiniteGuard
from guardlit.training.sharded_strategy import sharding
from guardlit.types import Conditioning, Prompt, Transition


class GRPOModule(pl.LightningModule):
    """Group-relative policy optimization of a flow-matching policy.

    Args:
        policy: the model.
        reward: the proxy that is trained on.
        sde: sampler of the rollout.
        objective: log ratio, step weight and clip.
        advantage: how rewards become advantages.
        rollout: how training images are drawn.
        evaluation: how validation images are drawn, by the Euler ODE.
        kl: penalty on the distance to the base model; null for none.
        optimizer: given the trainable parameters.
        lr_scheduler: stepped after every update; null keeps the learning rate.
        old_velocity: `stored` takes the rollout's velocities as the old policy's; `recomputed` asks the old policy
            again at the micro-batch's own shape, for networks whose output depends on it (half precision); `auto`
            stores them where rollout and training batches are equal and the noise floor allows it.
        max_failed_fraction: share of a round's rewards that may fail; above it the run stops.
        nonfinite: whether to `stop` before an update whose loss or gradient is NaN or infinite, or to `skip` it.
        max_skipped: updates in a row that may be skipped; above it the run stops.
    """

    def __init__(
        self,
        policy: FlowPolicy,
        reward: Scorer,
        sde: SDE = lazy_instance(FlowSDE),  # noqa: B008 - stateless
        objective: Objective = lazy_instance(GRPOGuard),  # noqa: B008 - stateless
        advantage: GroupAdvantage = GroupAdvantage(),  # noqa: B008 - frozen
        rollout: Rollout = Rollout(),  # noqa: B008 - frozen
        evaluation: Sampling = Sampling(),  # noqa: B008 - frozen
        kl: KL | None = None,
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
        self.sde, self.objective, self.advantage = sde, objective, advantage
        self.rollout, self.evaluation, self.kl = rollout, evaluation, kl
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self.old_velocity = "recomputed" if old_velocity == "auto" and rollout.merge is True else old_velocity
        self.old = OldPolicy(self.old_velocity)
        self.max_failed_fraction = guards.check_fraction("max_failed_fraction", max_failed_fraction)
        self.nonfinite = NonFiniteGuard(nonfinite, max_skipped)
        self.strict_loading = False  # checkpoints hold only what trains
        self.reward_runner = RewardRunner(self.reward, World.single())
        self.validated = MeanMetric(nan_strategy="disable")  # Lightning's own mean is wrong for unequal shares
        self.round_metrics: dict[str, float] = {}  # of the round in progress, for whoever shows them
        self.drew_merged: bool | None = None  # how the last round was drawn
        self._experience: Experience | None = None
        self.outputs: list[dict[str, Tensor]] = []  # of the update in progress, micro-batch by micro-batch
        self._restored_gradients: dict[str, Tensor] = {}
        self._collected = 0.0

    # set-up -------------------------------------------------------------------------------------------------------

    @property
    def train_steps(self) -> int:
        """S, trained denoising steps of an image."""
        return self.rollout.train_steps

    def setup(self, stage: str) -> None:
        """The reward of this stage's ranks and device."""
        self.reward_runner = RewardRunner(self.reward, World.of(self.trainer))

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise `GuardlitError` for a prompt that the reward can never score."""
        self.reward_runner.check_prompt(prompt)

    def largest_micro_batch(self, sizes: Sequence[int], conditioning: Conditioning) -> int:
        """The first of falling sizes that fits into memory on every rank. Collective: every rank must call it."""
        return largest_that_fits(self, sizes, conditioning)

    def configure_model(self) -> None:
        """Load the policy's weights, every process its part of them where they are sharded."""
        self.policy.load(sharding(self))
        keep_quantized(self)

    def configure_callbacks(self) -> list[pl.Callback]:
        """What `clip_range: auto` needs."""
        return ClipCalibration.needed(self)

    def configure_optimizers(self) -> Any:
        """The optimizer over what trains."""
        optimizer = guards.optimizer_of(self._optimizer, [p for p in self.parameters() if p.requires_grad])
        if self._lr_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._lr_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def coefficients(self) -> Coefficients:
        """Of the rollout's sampler on the model's schedule; raises `GuardlitError` for a step without noise."""
        coefficients = self.sde.coefficients(self.policy.sigmas(self.rollout.num_inference_steps))
        guards.check_noise(coefficients, self.rollout.available_steps, type(self.sde).__name__)
        self.objective.bind(*coefficients.between(*self.rollout.trainable_range))
        return coefficients

    def on_fit_start(self) -> None:
        """Load and test the reward before anything is drawn, and refuse what cannot work."""
        guards.check_precision(str(self.trainer.precision), self.policy.forward_dtype)
        guards.check_clip(self.objective, self._plan, self.elements)
        self.trainer.datamodule.settle()  # type: ignore[attr-defined]
        fit_scale(self.trainer.precision_plugin, self._plan.micro_batches_per_update)
        merging.check(self)
        self.reward_runner.test(self.trainer.datamodule.train[:1])  # type: ignore[attr-defined]

    def teardown(self, stage: str) -> None:
        """Release the reward's processes and connections."""
        self.reward_runner.close()

    @property
    def elements(self) -> int:
        """D, latent elements of a sample."""
        return math.prod(self.policy.latent_shape)

    @property
    def _plan(self) -> RoundPlan:
        return self.trainer.datamodule.plan  # type: ignore[attr-defined,no-any-return]

    def on_train_start(self) -> None:
        """Put partly accumulated gradients back, and draw the validation images of step 0."""
        unfinished.restore_gradients(dict(self.named_parameters()), self._restored_gradients)
        self.outputs = [{k: v.to(self.device) for k, v in output.items()} for output in self.outputs]
        self._restored_gradients = {}
        if self.trainer.global_step == 0:
            validate_now(self.trainer)

    # the round ----------------------------------------------------------------------------------------------------

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...) of every process, (world, n, ...); to be called by all."""
        return self.all_gather(rows) if self.trainer.world_size > 1 else rows.unsqueeze(0)  # type: ignore[return-value]

    def collect(self, round: Round, batch_size: int) -> Experience:
        """Draw, score and judge one round: the start of a Lightning epoch."""
        self.policy.refresh_old()
        self.outputs = []  # left over where the Trainer cut the last round short
        self._experience = None  # its trajectories make room for the new ones
        try:
            return self._begin(Collector(self, round, batch_size).collect())
        except BaseException:
            self.reward_runner.close()  # ends what still scores in the background
            raise

    @property
    def experience(self) -> Experience:
        """The round that was collected last."""
        assert self._experience is not None
        return self._experience

    def _begin(self, experience: Experience) -> Experience:
        self._experience, self.round_metrics = experience, dict(experience.metrics)
        self._collected, self.old.first_update = time.perf_counter(), experience.round.plan.micro_batches_per_update
        return experience

    def restore_experience(self, state: Any, round: Round) -> Experience:
        """Take up a round in progress from a checkpoint."""
        self.policy.encode_across_ranks([p.text for p in round.prompts], round.ahead)
        conditioning = self.policy.conditioning([p.text for p in round.prompts])
        place, keep = self.rollout.trajectories, self.old.restores(state)
        return self._begin(Experience.restore(state, round, conditioning, self.coefficients(), place, keep))

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        """Loss of one micro-batch; the other entries, detached, are what callbacks read (B,)."""
        velocity, old = self.velocities(batch, batch_idx)
        step = {"gain": batch.gain, "std": batch.std, "dt": batch.dt}
        judged = {"advantage": batch.advantage, "sample_weight": batch.sample_weight}
        out = self.objective(velocity, old, batch.noise, **judged, **step)
        # the graph from the loss to the velocity is a few elementwise operations; the network is not touched
        (gradient,) = torch.autograd.grad(out.loss, velocity, retain_graph=True)
        outputs = {
            "loss": out.loss,
            "log_ratio": out.log_ratio,
            "raw_log_ratio": out.raw_log_ratio,
            "norm_log_ratio": out.norm_log_ratio,
            "clipped": out.clipped,
            **judged,
            "timestep": batch.sigma,
            "step": batch.step,
            "sample": batch.sample,
            "velocity_grad_norm": len(batch) * gradient.flatten(1).norm(dim=1),
            **self.old.compare(self, batch, velocity, batch_idx),
        }
        if self.kl is not None:
            divergence = kl_divergence(self.kl.kind, velocity, self.other_velocity(batch, "reference"), **step)
            outputs["kl"] = divergence.detach()
            outputs["loss"] = out.loss + self.kl.weight * (batch.sample_weight * divergence).mean()
        self.outputs.append({k: v.detach() for k, v in outputs.items()})
        return outputs

    def velocities(self, batch: Transition, batch_idx: int | None = None) -> tuple[Tensor, Tensor]:
        """The trained policy's velocity, with gradient, and the old policy's, (B, C, H, W) each."""
        velocity = self._velocity(batch)
        return velocity, self.old.velocity(self, batch, velocity, batch_idx)

    def _velocity(self, batch: Transition) -> Tensor:
        return self.policy.velocity(batch.latents, batch.sigma, batch.conditioning, self.rollout.guidance_scale)

    def other_velocity(self, batch: Transition, weights: Literal["old", "reference"]) -> Tensor:
        """The velocity under other weights, (B, C, H, W) without gradient."""
        with self.policy.using(weights):
            return self._velocity(batch)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a micro-batch; prompts have no device."""
        return batch.to(device) if isinstance(batch, Transition) else batch

    # one update ---------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The last moment before the weights move: norm, guard, noise floor, and the update's log line."""
        norm = total_norm(p.grad for p in self.parameters())
        if self.nonfinite.allows(self, norm):
            self.old.before_update(self)
        # here and not after the step: a checkpoint written then finds no update in progress
        self.log_dict(update_metrics(self.outputs, norm, self.nonfinite.skipped), batch_size=1, sync_dist=True)
        self.outputs = []

    def on_train_batch_end(self, outputs: Any, batch: Transition, batch_idx: int) -> None:
        """Tell how far the round is."""
        announce(self.trainer, "update", batch_idx + 1, self._plan.micro_batches)

    def on_train_epoch_end(self) -> None:
        """Log the round."""
        finish_round(self.round_metrics, self._collected, self._plan.images, self.experience.round.index)
        self.log_dict(self.round_metrics, batch_size=1, sync_dist=True)

    # validation ---------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Encode all prompts at once: the text encoders load at most one time."""
        self.policy.encode_across_ranks(
            [prompt.text for _, prompt in getattr(self.trainer.val_dataloaders, "dataset", [])]
        )

    def on_validation_epoch_start(self) -> None:
        """Test the scorers that are in use for the first time, before anything is drawn."""
        prompts = [prompt for _, prompt in getattr(self.trainer.val_dataloaders, "dataset", [])]
        set_up = not self.trainer.sanity_checking  # callbacks such as GoldScore have set up their scorers by now
        self.reward_runner.test(prompts, gold_scorers(self.trainer.callbacks) if set_up else None)  # type: ignore[attr-defined]

    def on_validation_epoch_end(self) -> None:
        """Stop on all processes where a score failed on one."""
        self.reward_runner.end_validation()

    def validation_step(self, batch: list[tuple[int, Prompt]], batch_idx: int) -> dict[str, Any]:
        """Draw and score one image a prompt, with noise that is the same at every validation."""
        prompts = [p for _, p in batch]
        images = self.predict_step(batch, batch_idx)
        texts, metadata = [p.text for p in prompts], [p.metadata for p in prompts]
        result = self.reward_runner.validate(images, prompts)
        self.validated.update(result.values.to(self.device))
        self.log("val/reward", self.validated, on_epoch=True, batch_size=len(batch))
        numbered = {"reward": result.values, "index": torch.tensor([i for i, _ in batch])}
        return {"images": images, "prompts": texts, "metadata": metadata, **numbered}

    def predict_step(self, batch: list[tuple[int, Prompt]], batch_idx: int) -> Tensor:
        """Images of (noise index, prompt) pairs by the evaluation settings, (B, 3, height, width) uint8."""
        return Collector.evaluate(self, ODE(), self.evaluation, [p for _, p in batch], [i for i, _ in batch])

    # checkpoints --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains; between two updates, also the old policy and the gradients so far."""
        finished = self.trainer.datamodule.finished_rounds  # type: ignore[attr-defined]
        part: dict[str, Any] = {"fingerprint": self._fingerprint(), "nonfinite": self.nonfinite.state_dict()}
        part["old_velocity"] = self.old.state_dict()
        if finished is None:
            part["old"] = self.policy.old_state()
        part |= unfinished.unfinished_update(self, self.outputs, World.of(self.trainer))
        contents.complete(checkpoint, dict(self.named_parameters()), self.trainer.optimizers, part, finished)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse what belongs to another run; put back what Lightning does not know."""
        fitting = self.trainer.state.fn == "fit"
        expected = self._fingerprint() if fitting else self.policy.fingerprint()
        part = contents.check_fingerprint(checkpoint, expected)
        if "old" in part:
            self.policy.load_old_state(part["old"])
        if not fitting:
            return
        self.nonfinite.load_state_dict(part.get("nonfinite", {}))
        self.old.load_state_dict(part.get("old_velocity", {}))
        place = (self.trainer.global_rank, self.trainer.world_size)
        self.outputs = unfinished.outputs_of(part, *place)
        self._restored_gradients = unfinished.gradients_of(part, *place, sharded=self.device_mesh is not None)
        move_within_epoch(checkpoint, self.trainer.datamodule.position_in(checkpoint))  # type: ignore[attr-defined]

    def _fingerprint(self) -> dict[str, str]:
        data = self.trainer.datamodule.fingerprint()  # type: ignore[attr-defined]
        return contents.fingerprint(self.policy.fingerprint(), self.sde, self.rollout, self.evaluation, data)
