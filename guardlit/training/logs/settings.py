"""A run's settings for its loggers: TensorBoard's tab HParams, and the configuration of a W&B run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import yaml
from guardlit_callbacks.tools.logging import log_settings, log_success

from guardlit.config.saved import SECTIONS, SavedConfig, sections

if TYPE_CHECKING:
    from guardlit.data.datamodule import PromptDataModule
    from guardlit.surrogate import Objective
    from guardlit.training.module import GRPOModule

METRICS = ("val/reward", "gold/average")
"""The final proxy and gold, whose last values stand next to the settings."""

FIRST = ("clip range", "learning rate", "objective", "reward", "seed")
"""What TensorBoard shows without being asked."""


class LoggedSettings(pl.Callback):
    """Gives loggers the settings of a run before its first validation, the same from a script and the command line.

    TensorBoard's tab HParams has one row a run: `summary`, the proxy and gold. Other loggers also get what is in
    `config.yaml`, where the command line has written one.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log them."""
        saved = [c for c in trainer.callbacks if isinstance(c, SavedConfig)]  # type: ignore[attr-defined]
        everything = yaml.safe_load(sections(saved[0], SECTIONS)) if saved else {}
        log_settings(trainer, summary(trainer, pl_module), METRICS, FIRST, everything)  # type: ignore[arg-type]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark the run as finished."""
        log_success(trainer)


def summary(trainer: pl.Trainer, module: GRPOModule) -> dict[str, float | str]:
    """The settings that matter most, under the names that a report gives them."""
    data: PromptDataModule = trainer.datamodule  # type: ignore[attr-defined]
    plan, objective, (optimizer, *_) = data.plan, module.objective, trainer.optimizers
    lora = getattr(module.policy, "lora", None)
    return {
        "model": str(getattr(module.policy, "model", type(module.policy).__name__)),
        "reward": module.reward.name,
        "objective": type(objective).__name__,
        "clip range": _calibrated(objective) or _clip(objective.clip_range),
        "KL weight": module.kl.weight if module.kl else 0.0,
        "optimizer": type(optimizer).__name__,
        "learning rate": float(optimizer.defaults.get("lr", 0.0)),
        "LoRA rank": lora.rank if lora else 0,
        "sampling steps": module.rollout.num_inference_steps,
        "guidance scale": module.rollout.guidance_scale,
        "prompts per round": plan.prompts_per_round,
        "images per prompt": plan.images_per_prompt,
        "updates per round": plan.updates_per_round,
        "rounds": -1 if trainer.max_epochs is None else trainer.max_epochs,
        "seed": data.seed,
    }


def _calibrated(objective: Objective) -> str | None:
    if not objective.auto:
        return None
    return "auto per step" if objective.bound.per_step else "auto"


def _clip(ends: tuple[float, float] | None) -> str:
    """The range as text, also where it is a number: a column of TensorBoard's has one type in all runs."""
    if ends is None:
        return "none"
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"-{ends[0]:g} to {ends[1]:g}"
