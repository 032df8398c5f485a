"""A run of `guardlit fit`, built from its configuration without weights, ranks or accelerators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from guardlit_callbacks import KLFromBase, SampleGrid, TrainableEMA

from guardlit.data.datamodule import PromptDataModule
from guardlit.data.image_pairs import ImagePairs
from guardlit.data.prompts import load_prompts
from guardlit.errors import GuardlitError
from guardlit.rounds.old_policy import rows_a_call
from guardlit.rounds.plan import RoundPlan
from guardlit.training.module import GRPOModule
from guardlit.training.sharded_strategy import ShardedStrategy

if TYPE_CHECKING:
    from collections.abc import Mapping

HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
SHORT = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "None": "32-true"}


@dataclass(frozen=True)
class PlannedRun:
    """A run that is configured but not started.

    Attributes:
        module: its policy is not loaded.
        data: before `setup`.
        trainer: the Trainer's arguments.
        callbacks: of the configuration.
    """

    module: GRPOModule
    data: PromptDataModule
    trainer: Mapping[str, Any]
    callbacks: list[pl.Callback]

    @property
    def precision(self) -> str:
        """Lightning's full name of the precision."""
        given = str(self.trainer.get("precision"))
        return SHORT.get(given, given)

    @property
    def half(self) -> torch.dtype | None:
        """Autocast's dtype; None without autocast, as for a network with half-precision weights."""
        return HALF.get(self.precision) if self.module.policy.forward_dtype is None else None

    @property
    def on_gpu(self) -> bool:
        """Whether the configuration asks for a GPU."""
        asked = str(self.trainer["accelerator"])
        return asked in ("gpu", "cuda") or (asked == "auto" and torch.cuda.is_available())

    @property
    def world(self) -> int:
        """World size: devices x nodes; the devices of this machine for `auto`."""
        devices = self.trainer["devices"]
        if isinstance(devices, list):
            devices = len(devices)
        if str(devices) in ("auto", "-1"):
            devices = max(torch.cuda.device_count(), 1) if self.on_gpu else 1
        if not str(devices).isdecimal() or int(devices) < 1:
            raise GuardlitError(f"trainer.devices={devices} is no number of devices; write one of at least 1, or auto")
        return int(devices) * int(self.trainer.get("num_nodes") or 1)

    @property
    def shards(self) -> int:
        """Ranks over which weights, gradients and optimizer state are sharded."""
        strategy = self.trainer.get("strategy")
        return self.world if strategy == "fsdp" or isinstance(strategy, ShardedStrategy) else 1

    @property
    def stays_gathered(self) -> bool:
        """Whether a sharded network stays gathered from the first forward pass to the next update."""
        strategy = self.trainer.get("strategy")
        return isinstance(strategy, ShardedStrategy) and not strategy.reshard_after_forward

    @property
    def rounds(self) -> int:
        """Rounds of the run; raises `GuardlitError` if the configuration sets no end."""
        rounds, updates = self.trainer.get("max_epochs"), self.trainer.get("max_steps") or -1
        limits = [int(rounds)] if rounds is not None and rounds >= 0 else []
        if updates >= 0:
            limits.append(-(-updates // self.plan.updates_per_round))
        if not limits:
            raise GuardlitError("trainer.max_epochs is not set, so that the run has no end: say how many rounds it is")
        return min(limits)

    @property
    def plan(self) -> RoundPlan:
        """The batch arithmetic; raises `GuardlitError` for numbers that do not divide."""
        return self.data.planned(self.module.rollout.train_steps, self.world, self.callbacks)

    @property
    def rollout_batch(self) -> int:
        """Images that a rank samples at once."""
        return self.data.rows_at_once(self.plan)

    @property
    def rollout_rows(self) -> int:
        """Images of a rollout batch; the last one may be smaller."""
        return min(self.rollout_batch, self.plan.local_images)

    @property
    def rows_a_call(self) -> int:
        """Images of every rollout batch; 0 if the last one is smaller."""
        return rows_a_call(self.plan.local_images, self.rollout_batch)

    @property
    def validations(self) -> int:
        """Number of validations: at step 0, after every `check_val_every_n_epoch` rounds, and after the last one."""
        every = int(self.trainer.get("check_val_every_n_epoch") or 1)
        return 1 + math.ceil(self.rounds / every) if self.data.val_source else 0

    def prompts(self) -> tuple[int | None, int | None]:
        """Numbers of training and validation prompts, each checked; None for a data set on the hub."""
        data = self.data
        return self._count(data.train_source, data.train_limit), self._count(data.val_source, data.val_limit)

    def _count(self, source: str | None, limit: int | None) -> int | None:
        if source is None:
            return 0
        if source.startswith("hf:"):
            return limit
        return len(load_prompts(source, limit=limit, check=self.module.check_prompt))

    @cached_property
    def pairs(self) -> ImagePairs | None:
        """The images of the data loss, each checked; None without such a loss."""
        return None if self.module.data_term is None else self.module.data_term.read(self.module.policy)

    def check_pairs(self) -> None:
        """Refuse a data loss that the run cannot have: raises `GuardlitError`."""
        if self.module.data_term is not None:
            self.module.data_term.bind(self.plan)

    @property
    def encoded(self) -> int:
        """Number of prompts that the run encodes; those of one round for a data set on the hub."""
        train, val = self.prompts()
        paired = len(set(self.pairs.texts)) if self.pairs else 0
        return (self.plan.prompts_per_round if train is None else train) + (val or 0) + 1 + paired

    @property
    def average(self) -> bool:
        """Whether a callback averages the trained weights."""
        return any(isinstance(callback, TrainableEMA) for callback in self.callbacks)

    @property
    def evaluation_calls(self) -> int:
        """Forward passes per validation image: T, and one of the reference for each step that `KLFromBase` measures."""
        evaluation = self.module.evaluation
        steps = evaluation.num_inference_steps
        measured = any(isinstance(callback, KLFromBase) for callback in self.callbacks)
        return steps + (min(self.module.rollout.available_of(steps), evaluation.policy_steps) if measured else 0)

    @property
    def grids(self) -> int:
        """Images written at each validation."""
        found = [callback for callback in self.callbacks if isinstance(callback, SampleGrid)]
        return sum(callback.max_images for callback in found)
