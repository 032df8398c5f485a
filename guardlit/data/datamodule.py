"""The DataModule: prompt sets, and the batch arithmetic of the rounds that are drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from guardlit.data.loader import ExperienceLoader, RoundRunner
from guardlit.data.prompt_set import PromptSet
from guardlit.data.prompts import load_prompts
from guardlit.data.views import Numbered, Texts, ValidationImages
from guardlit.errors import GuardlitError, at_least
from guardlit.processes.world import World
from guardlit.rounds.plan import RoundPlan, candidates, read_micro_batches
from guardlit.rounds.round import Round
from guardlit.types import Prompt

ENCODE_ALL = 4096
"""Prompt sets up to this size are encoded completely before the first round."""
ENCODE_ROUNDS = 64
"""Rounds whose prompts are encoded at once from larger sets."""


class PromptDataModule(pl.LightningDataModule):
    """Prompt sets, and the round's batch arithmetic in the user's words.

    Args:
        train: prompts to train on: a .txt, .jsonl, .csv or .parquet file, a `guardlit://` asset, or a Hugging Face data
            set as `hf:owner/name?split=train&column=caption`.
        val: prompts for validation images, scored with fixed noise; null for none.
        prompts_per_round: groups that a round draws.
        images_per_prompt: images in a group.
        updates_per_round: optimizer steps on a round's images; with 1, all inner epochs included, every update is
            on-policy and no clip can act.
        inner_epochs: passes over the round's images.
        micro_batch: the most transitions in a forward and backward pass on one rank. A run takes the largest number
            up to it that divides the transitions of an update on a rank and, where a callback such as `GradientNorm`
            reads the gradient of each denoising step, the images. `auto` takes the largest such number up to
            `rollout_batch` that fits into memory, found at the start of `fit`; a resumed run keeps its number.
        rollout_batch: images sampled at once on one rank; null takes as many as a micro-batch has transitions.
        val_limit: validation prompts to use; null for all.
        val_images_per_prompt: validation images of each prompt, each with its own fixed noise.
        seed: of prompts, noise and order.
        train_limit: training prompts to use, the first ones of `train`; null for all.
        exact_micro_batch: take `micro_batch` as it is, and refuse one that does not divide.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        prompts_per_round: int = 48,
        images_per_prompt: int = 24,
        updates_per_round: int = 2,
        inner_epochs: int = 1,
        micro_batch: int | Literal["auto"] = 9,
        rollout_batch: int | None = None,
        val_limit: int | None = None,
        val_images_per_prompt: int = 1,
        seed: int = 42,
        train_limit: int | None = None,
        exact_micro_batch: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, **{"data.train_limit": train_limit, "data.val_limit": val_limit})
        at_least(1, **{"data.val_images_per_prompt": val_images_per_prompt})
        self.train_source, self.val_source = train, val
        self._auto, self._settled, self._exact = micro_batch == "auto", False, exact_micro_batch
        self._rollout_batch = rollout_batch
        self._most = self._check_micro_batch(micro_batch)
        size = 1 if micro_batch == "auto" else micro_batch  # divides everything, until it is settled
        self.sizes = (prompts_per_round, images_per_prompt, updates_per_round, inner_epochs, size)
        """The batch arithmetic as it is configured, in the order of `RoundPlan`."""
        self.train_limit, self.val_limit, self.val_images = train_limit, val_limit, val_images_per_prompt
        self.seed = seed
        self.train, self.val = PromptSet(), PromptSet()
        self.plan: RoundPlan
        self._loader: ExperienceLoader | None = None
        self._restored: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Read and check the prompts, and derive the arithmetic for this world size."""
        assert self.trainer is not None
        check = self._runner.check_prompt
        if stage == "validate" and not self.val_source:
            raise GuardlitError("validate needs data.val, the prompts whose images are scored; it is null")
        if stage == "fit" and not self.train:
            self.train = load_prompts(self.train_source, limit=self.train_limit, check=check)
        if self.val_source and not self.val:
            self.val = load_prompts(self.val_source, limit=self.val_limit, check=check)
        if 0 < len(self.val) * self.val_images < self.trainer.world_size:
            raise GuardlitError(
                f"{len(self.val) * self.val_images} validation images are fewer than {self.trainer.world_size} "
                "processes: raise data.val_images_per_prompt"
            )
        if stage == "fit":
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            self.plan = self.planned(self._runner.rollout.train_steps, self.trainer.world_size, callbacks)
            self._accumulate(self.plan.micro_batches_per_update)
            self._settled = False

    def planned(self, train_steps: int, world: int, callbacks: Iterable[object]) -> RoundPlan:
        """The batch arithmetic of a run; of `auto`, with the largest micro-batch.

        Args:
            train_steps: S, of each image.
            world: world size.
            callbacks: of the run, which may need micro-batches of one denoising step.

        Raises:
            GuardlitError: numbers that do not divide.
        """
        plan = RoundPlan(*self.sizes[:-1], 1, train_steps=train_steps, world_size=world)
        size = candidates(plan, self._most, one_step=read_micro_batches(callbacks))[0]
        if self._exact and size != self._most:
            plan = replace(plan, micro_batch=self._most)  # raises where it does not divide
            raise GuardlitError(
                f"data.micro_batch={self._most} has transitions of several denoising steps, which GradientNorm cannot "
                f"tell apart: let it divide the {plan.images_per_update} images of an update on a rank, set "
                "data.exact_micro_batch=false or GradientNorm's parameters_every=0"
            )
        return replace(plan, micro_batch=size, at_most=None if self._auto or size == self._most else self._most)

    def rows_at_once(self, plan: RoundPlan) -> int:
        """Images that a rank samples at once under a plan."""
        return plan.micro_batch if self._rollout_batch is None else self._rollout_batch

    @property
    def rollout_batch(self) -> int:
        """Images that a rank samples at once; without a plan, as a command other than `fit` is, as configured."""
        return self.rows_at_once(self.plan) if hasattr(self, "plan") else self._rollout_batch or self._most

    def settle(self) -> None:
        """Find the micro-batch of `auto`, with the policy loaded. Collective: every rank must call it."""
        if self._auto and not self._settled:
            round, policy = self.round(0), self._runner.policy
            texts = [p.text for p in round.prompts]
            policy.encode_across_ranks(texts, round.ahead)
            sizes = candidates(self.plan, self._most, one_step=self._one_step)
            self._settle(self._runner.largest_micro_batch(sizes, policy.conditioning(texts)))

    def _settle(self, micro_batch: int) -> None:
        assert self.trainer is not None
        self.plan, self._settled = replace(self.plan, micro_batch=micro_batch), True
        self.trainer.accumulate_grad_batches = self.plan.micro_batches_per_update

    def _accumulate(self, batches: int) -> None:
        assert self.trainer is not None
        if self.trainer.accumulate_grad_batches not in (1, batches) and not self._auto:
            raise GuardlitError(
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches}: leave it out, it follows "
                f"from data.updates_per_round and data.micro_batch (here {batches})"
            )
        self.trainer.accumulate_grad_batches = batches

    def round(self, index: int) -> Round:
        """Round `index` of this rank: a pure function of (seed, index), but for the rank."""
        assert self.trainer is not None
        ahead = Texts(lambda: [p.text for p in self._ahead(index)])
        rollout, rank = self._runner.rollout, self.trainer.global_rank
        steps = rollout.available_steps
        return Round(index, self._prompts(index), ahead, self.plan, self.seed, rank, rollout.window, steps)

    def _prompts(self, index: int) -> list[Prompt]:
        return [self.train[i] for i in self.plan.prompt_indices(self.seed, index, len(self.train))]

    def _ahead(self, index: int) -> list[Prompt]:
        """Prompts to encode at once when one of round `index` is new."""
        if len(self.train) <= ENCODE_ALL:
            return [*self.train, *self.val]
        return [prompt for k in range(index, index + ENCODE_ROUNDS) for prompt in self._prompts(k)]

    def _check_micro_batch(self, micro_batch: int | Literal["auto"]) -> int:
        """The most transitions that a micro-batch may have; raises `GuardlitError` for numbers that mean nothing."""
        at_least(1, **{"data.rollout_batch": self._rollout_batch})
        if micro_batch != "auto":
            at_least(1, **{"data.micro_batch": micro_batch})
            return micro_batch
        if self._exact:
            raise GuardlitError("data.exact_micro_batch=true needs a number as data.micro_batch; found auto")
        if self._rollout_batch is None:
            raise GuardlitError("data.micro_batch=auto needs data.rollout_batch, the most that it may take")
        return self._rollout_batch

    @property
    def _one_step(self) -> bool:
        """Whether a callback needs micro-batches of one denoising step."""
        assert self.trainer is not None
        return read_micro_batches(self.trainer.callbacks)  # type: ignore[attr-defined]

    @property
    def _runner(self) -> RoundRunner:
        assert self.trainer is not None
        return cast("RoundRunner", self.trainer.lightning_module)

    def train_dataloader(self) -> ExperienceLoader:
        """The loader of rounds, from the one that the Trainer is at: it may ask for a loader more than once."""
        assert self.trainer is not None
        self._loader = ExperienceLoader(self, self._runner, World.of(self.trainer))
        self._loader.round_index = self.trainer.current_epoch
        if self._restored is not None:
            self._loader.load_state(self._restored)
            self._restored = None
        return self._loader

    def val_dataloader(self) -> DataLoader[Numbered] | list[Any]:
        """This rank's part of the validation images.

        All ranks have the same number of batches, since a sharded policy needs all of them for every forward pass.
        Where one image a batch is asked for and images do not divide, some batches are of two.
        """
        assert self.trainer is not None
        world, images = self.trainer.world_size, len(self.val) * self.val_images
        if not images:
            return []
        mine = ValidationImages(self.val, self.val_images, self.trainer.global_rank, world)
        batches = min(math.ceil(math.ceil(images / world) / self.rollout_batch), images // world)
        parts = [part.tolist() for part in torch.arange(len(mine)).tensor_split(batches)]
        return DataLoader(mine, batch_sampler=parts, collate_fn=list)

    @property
    def finished_rounds(self) -> int | None:
        """Number of rounds behind the run between two rounds; None within one."""
        loader = self._loader
        return loader.round_index if loader is not None and loader.position == 0 else None

    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint must agree on with these data: batch arithmetic, seed and prompts."""
        # any world size and any micro-batch make the same updates
        free = ("world_size", "micro_batch", "at_most", "train_steps")
        facts = {f"data.{name}": str(value) for name, value in vars(self.plan).items() if name not in free}
        val = f"{self.val.digest} x {self.val_images}"
        return {**facts, "data.seed": str(self.seed), "data.train": self.train.digest, "data.val": val}

    def position_in(self, checkpoint: Mapping[str, Any]) -> int:
        """The micro-batch of its round before which a checkpoint stands."""
        return self.plan.position(checkpoint.get(type(self).__qualname__, {}).get("transitions", 0))

    def state_dict(self) -> dict[str, Any]:
        """Round, position and the experience of a round in progress. Collective: every rank must call it."""
        return {} if self._loader is None else self._loader.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the loader, and take a micro-batch that begins where the checkpoint stands.

        It is that of the plan or, for `auto`, of the checkpoint, unless none of that size begins there.
        """
        self._restored = state_dict
        assert self.trainer is not None
        if self._exact or not state_dict or self.trainer.state.fn != "fit":
            return
        done, size = state_dict["transitions"], self.plan.micro_batch
        sizes = candidates(self.plan, self._most, done, self._one_step)
        if self._auto:
            size = state_dict.get("micro_batch", 0)
        if size in sizes:
            self._settle(size)
        elif sizes and done:
            rank_zero_info(f"micro_batch: {sizes[0]}, so that one begins where the checkpoint stands in its round")
            self._settle(sizes[0])
