"""Validation and prediction: one image per prompt, drawn with fixed noise."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from guardlit_callbacks import KLFromBase
from torch import Tensor
from torchmetrics import MeanMetric

from guardlit.errors import NonFiniteError
from guardlit.policies.base import FlowPolicy
from guardlit.rounds.evaluate import ReferenceKL, check_base, draw_fixed
from guardlit.rounds.reward_runner import RewardRunner, gold_scorers
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import SDE
from guardlit.training.limits.callbacks import check_monitors
from guardlit.types import Prompt, Transition


class ValidationHooks(pl.LightningModule):
    """Hooks that draw and score validation images; a base class of the module.

    Attributes:
        policy: the model.
        rollout: whose `merge` also decides how validation images are drawn.
        sde: sampler of the rollout, whose steps `KLFromBase` measures.
        evaluation: how validation images are drawn.
        reward_runner: scores them.
        validated: mean of their rewards; Lightning's own mean is wrong for ranks with unequal numbers of images.
    """

    policy: FlowPolicy
    rollout: Rollout
    sde: SDE
    evaluation: Sampling
    reward_runner: RewardRunner
    validated: MeanMetric

    def on_validation_start(self) -> None:
        """Encode all prompts at once, so that the text encoders load at most once; check what is drawn and measured."""
        check_base(self.policy, self.evaluation.base_steps)
        self.reference_kl()
        self.policy.encode_across_ranks(
            [prompt.text for _, prompt in getattr(self.trainer.val_dataloaders, "dataset", [])]
        )

    def on_validation_epoch_start(self) -> None:
        """Test scorers at their first use, before anything is drawn."""
        prompts = [prompt for _, prompt in getattr(self.trainer.val_dataloaders, "dataset", [])]
        set_up = not self.trainer.sanity_checking  # callbacks such as GoldScore have set up their scorers by now
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self.reward_runner.test(prompts, gold_scorers(callbacks) if set_up else None)

    def on_validation_epoch_end(self) -> None:
        """Raise on every rank what failed on one."""
        self.reward_runner.end_validation()

    def on_validation_end(self) -> None:
        """Check the keys that callbacks watch, after the validation of update 0 at the latest."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            check_monitors(self.trainer.callbacks, self.trainer.callback_metrics)  # type: ignore[attr-defined]

    def validation_step(self, batch: list[tuple[int, Prompt]], batch_idx: int) -> dict[str, Any]:
        """Draw and score one image a prompt, with noise that is the same at every validation.

        With the callback `KLFromBase`, the output `kl_from_base` (B, S) is the KL of each SDE step from the base's, in
        nats; see `ReferenceKL`. Otherwise nothing is computed for it.

        Logged after each validation:

        | key | unit |
        |---|---|
        | `val/reward` | mean reward of the validation images, in the reward's unit |
        """
        prompts = [p for _, p in batch]
        kl = self.reference_kl()
        images = self._draw(batch, kl)
        texts, metadata = [p.text for p in prompts], [p.metadata for p in prompts]
        result = self.reward_runner.validate(images, prompts)
        self.validated.update(result.values.to(self.device))
        self.log("val/reward", self.validated, on_epoch=True, batch_size=len(batch))
        numbered = {"reward": result.values, "index": torch.tensor([i for i, _ in batch])}
        measured = {} if kl is None else {"kl_from_base": kl.values()}
        return {"images": images, "prompts": texts, "metadata": metadata, **numbered, **measured}

    def reference_kl(self) -> ReferenceKL | None:
        """What measures the KL from the base for one batch, if the callback `KLFromBase` asks for it.

        Raises:
            GuardlitError: no step of a validation has a KL.
        """
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, KLFromBase) for callback in callbacks):
            return None
        return ReferenceKL.of(self.policy, self.sde, self.rollout, self.evaluation)

    def predict_step(self, batch: list[tuple[int, Prompt]], batch_idx: int) -> Tensor:
        """Images of (noise index, prompt) pairs by the evaluation settings, (B, 3, height, width) uint8."""
        return self._draw(batch)

    def _draw(self, batch: list[tuple[int, Prompt]], kl: ReferenceKL | None = None) -> Tensor:
        texts, indices = [p.text for _, p in batch], [i for i, _ in batch]
        try:
            return draw_fixed(self.policy, self.evaluation, texts, indices, self.rollout.merge, kl)
        except NonFiniteError as error:
            self.reward_runner.fail(error, deferred=self.trainer.validating)
            return self.policy.decode(torch.zeros(len(texts), *self.policy.latent_shape, device=self.device))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a micro-batch; prompts have no device, and Lightning cannot copy them."""
        return batch.to(device) if isinstance(batch, Transition) else batch
