"""The flow-matching loss on images as a part of a run: it reads and encodes the pairs, adds the loss, and logs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from guardlit.data.datamodule import ENCODE_ALL, ENCODE_ROUNDS
from guardlit.data.image_pairs import ImagePairs, load_pairs
from guardlit.data.views import Texts
from guardlit.policies.base import FlowPolicy
from guardlit.policies.folders.embeddings import EmbeddingCache
from guardlit.processes.world import World
from guardlit.rounds.noise import EVALUATION
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.settings import Rollout
from guardlit.training.data_loss.draw import DataDraw, DataRows, at_steps, logit_normal
from guardlit.training.data_loss.latents import LATENTS, encode_pairs
from guardlit.training.data_loss.settings import DataLoss, DataPlan
from guardlit.training.update.micro_batch import LATER
from guardlit.types import Transition

FIXED = EVALUATION
"""The round index of the pairs that are measured over and over: their noise and timesteps are no update's."""
RISE = 0.1
"""Rise of the loss over the base model's from which DDRL takes reward hacking for certain."""


class Trained(Protocol):
    """What the loss uses of the module."""

    policy: FlowPolicy
    rollout: Rollout

    @property
    def device(self) -> torch.device:
        """Where it trains."""

    @property
    def round_index(self) -> int:
        """Index of the round in progress."""

    @property
    def world(self) -> World:
        """The ranks."""


class DataTerm(pl.Callback):
    """Adds the flow-matching loss on images to a run; `model.data_loss` configures it, and a run adds it by itself.

    Pairs come up equally often. Which ones an update has, their timesteps and their noise follow from seed, round and
    update alone: a run is the same on one process or several, at any micro-batch, and resumed within a round. (Resumed
    within an update at another world size, some pairs of that update may count twice or not at all.) `sigma`
    is spread evenly over the pairs of an update. The velocity is the model's without guidance, in one forward pass; a
    network whose guidance is an input gets the rollout's scale.

    Before the first update the loss is measured on as many fixed pairs, timesteps and draws of noise as an update has,
    and again at the end of every round. A rise of 10 % is a sign of reward hacking (DDRL), and is warned about once.

    Logged at the end of a round:

    | key | unit |
    |---|---|
    | `train/data_loss_base` | loss of the fixed pairs before the first update, squared velocity |
    | `train/data_loss_rise` | how much higher it is now, as a fraction of that: 0.1 is 10 % |

    Args:
        settings: of the configuration.
    """

    def __init__(self, settings: DataLoss) -> None:
        self.settings = settings
        self.base: float | None = None
        """The loss before the first update; the same on every rank."""
        self._measured_on = ""
        self._warned = False
        self._round: int | None = None
        self._plan: DataPlan
        self._draw: DataDraw
        self._pairs: ImagePairs
        self._sigmas: Tensor
        self._latents: EmbeddingCache | None = None

    # set-up -------------------------------------------------------------------------------------------------------

    def bind(self, plan: RoundPlan) -> None:
        """Take the arithmetic of a round; raises `GuardlitError` without images, or for pairs that do not divide."""
        assert self.settings.source
        self._plan = DataPlan.of(self.settings, plan)

    def pairs_of(self, plan: RoundPlan) -> int:
        """Pairs in an update of that arithmetic, on all ranks."""
        return DataPlan.of(self.settings, plan).pairs

    def read(self, policy: FlowPolicy) -> ImagePairs:
        """Read and check the pairs, before the policy is loaded; raises `GuardlitError` as `load_pairs` does."""
        return load_pairs(self.settings.source, policy.image_size)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read and check the pairs."""
        if stage == "fit":
            data, module = trainer.datamodule, cast("Trained", pl_module)  # type: ignore[attr-defined]
            self.bind(data.plan)
            self._pairs = self.read(module.policy)
            self._draw = DataDraw(data.seed, len(self._pairs), self._plan.pairs, self._plan.updates)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Encode the images. Collective."""
        module = cast("Trained", pl_module)
        sigmas = module.policy.sigmas(module.rollout.num_inference_steps)
        self._sigmas = sigmas[range(*module.rollout.trainable_range)]
        self._latents, self._round = encode_pairs(module.policy, self._pairs, module.world), None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the loss before the first update. Collective."""
        measured_on = f"{self._pairs.digest} {self._plan.pairs} {self.settings.timesteps}"
        if self.base is None or self._measured_on != measured_on:
            self.base, self._measured_on = self._measure(trainer, cast("Trained", pl_module)), measured_on
            rank_zero_info(f"data loss: {self.base:.4g} on {self._plan.pairs} pairs, before any update with them")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Encode the prompts of a round that begins, or is resumed. Collective."""
        module = cast("Trained", pl_module)
        if self._round != module.round_index:
            self._round = module.round_index
            self._encode(module, [self._round])

    def _encode(self, module: Trained, rounds: Sequence[int]) -> None:
        ahead: Sequence[str] = sorted(set(self._pairs.texts))
        if len(ahead) > ENCODE_ALL:
            ahead = Texts(lambda: self._texts(range(rounds[0], rounds[0] + ENCODE_ROUNDS)))
        module.policy.encode_across_ranks(self._texts(rounds), ahead)

    def _texts(self, rounds: Iterable[int]) -> list[str]:
        """Prompts of some rounds' pairs, each once."""
        rows, updates = range(self._plan.pairs), range(self._plan.updates)
        found = (i for k in rounds for update in updates for i in self._draw.indices(k, update, rows))
        return list(dict.fromkeys(self._pairs.texts[i] for i in found))

    # a micro-batch ------------------------------------------------------------------------------------------------

    def add(self, loss: Tensor, module: Trained, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        """Add a micro-batch's part of the loss, so that an update has the mean over its pairs times the weight.

        Args:
            loss: of the objective, () with gradient.
            module: that trains.
            batch: the micro-batch's transitions.
            batch_idx: its index in the round.

        Returns:
            The sum as `loss`, and `data_loss` of each pair, unweighted, (n,) detached; n may be 0.
        """
        rows = self._rows(module, batch, batch_idx)
        if not len(rows):
            return {"loss": loss, "data_loss": rows.sigma.detach()}
        losses = self._losses(module, rows)
        added = self.settings.weight * self._plan.factor(len(batch)) * losses.sum()
        return {"loss": loss + added.to(loss.dtype), "data_loss": losses.detach().float()}

    def _rows(self, module: Trained, batch: Transition, batch_idx: int) -> DataRows:
        if self._latents is None or batch_idx == LATER:  # the cost of a micro-batch is measured
            shape, rows = batch.latents.shape[1:], self._plan.most(len(batch))
            return DataRows.blank(rows, shape, batch.conditioning, batch.latents.device)
        update, own = self._plan.rows(batch_idx, len(batch), module.world.rank)
        return self._take(module, self._draw.indices(module.round_index, update, own), module.round_index, update, own)

    def _take(self, module: Trained, pairs: list[int], round: int, update: int, rows: Sequence[int]) -> DataRows:
        """Rows of an update, on the device."""
        if not rows:
            empty = torch.empty(0, device=module.device)
            return DataRows(empty, empty, empty, {})
        assert self._latents is not None
        latents = self._latents.get([self._pairs.digests[i] for i in pairs])[LATENTS]
        noise = self._draw.noise(round, update, rows, latents.shape[1:], pinned=module.device.type == "cuda")
        sigma = self._timesteps(module, self._draw.quantiles(round, update, rows)).float()
        conditioning = module.policy.conditioning([self._pairs.texts[i] for i in pairs])
        return DataRows(latents, noise, sigma, conditioning).to(module.device)

    def _timesteps(self, module: Trained, quantiles: Tensor) -> Tensor:
        if self.settings.timesteps == "sampler":
            return at_steps(quantiles, self._sigmas)
        return module.policy.shifted(logit_normal(quantiles), module.rollout.num_inference_steps)

    def _losses(self, module: Trained, rows: DataRows) -> Tensor:
        scale = module.policy.unguided_scale(module.rollout.guidance_scale)
        return rows.losses(module.policy.velocity(rows.noisy, rows.sigma, rows.conditioning, scale))

    # the fixed pairs ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure(self, trainer: pl.Trainer, module: Trained) -> float:
        """The loss of the fixed pairs under the present weights. Collective: every rank must call it."""
        own = range(module.world.rank, self._plan.pairs, self._plan.world_size)
        at_once = max(self._plan.most(trainer.datamodule.plan.micro_batch), 1)  # type: ignore[attr-defined]
        self._encode(module, [0])  # the fixed pairs are of its first update
        parts = []
        for start in range(0, len(own), at_once):
            rows = own[start : start + at_once]
            with trainer.precision_plugin.forward_context():
                parts.append(self._losses(module, self._take(module, self._draw.fixed(rows), FIXED, 0, rows)))
        return float(module.world.gather(torch.cat(parts)).mean())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the loss again after a round's last update, and log it. Collective."""
        if batch_idx + 1 == trainer.datamodule.plan.micro_batches:  # type: ignore[attr-defined]
            # not at the epoch's end: there, callbacks that watch the key come first
            self._compare(trainer, pl_module)

    def _compare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.base is not None
        rise = self._measure(trainer, cast("Trained", pl_module)) / self.base - 1
        pl_module.log_dict({"train/data_loss_base": self.base, "train/data_loss_rise": rise})
        if rise > RISE and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"the loss on the data has risen by {rise:.0%} over the base model's: DDRL takes 10 % for a sign of "
                "reward hacking; raise model.data_loss.weight, or stop here"
            )

    def state_dict(self) -> dict[str, Any]:
        """What was measured before the first update; the same on every rank."""
        return {"base": self.base, "measured_on": self._measured_on, "warned": self._warned}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore it."""
        self.base, self._measured_on = state_dict["base"], state_dict["measured_on"]
        self._warned = state_dict["warned"]
