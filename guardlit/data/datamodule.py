"""Prompts in, rounds of experience out: the DataModule and the loader whose epoch is one RL round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from guardlit.data.prompt_set import PromptSet
from guardlit.data.prompts import load_prompts
from guardlit.errors import GuardlitError, at_least
from guardlit.processes.collectives import gather_on_first
from guardlit.rounds.experience import Experience
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.training.micro_batch import candidates, largest_that_fits
from guardlit.types import Prompt, Transition

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

ENCODE_ALL = 4096
"""Prompt sets up to this size are encoded whole before the first round; larger ones 64 rounds at a time."""
ENCODE_ROUNDS = 64


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
        micro_batch: transitions per forward and backward pass on one process. `auto` takes the largest number up to
            `rollout_batch` that divides an update and for which there is memory, found at the start of `fit`; a run
            that goes on keeps its number.
        rollout_batch: images sampled at once on one process; null takes `micro_batch`.
        val_limit: validation prompts to use; null for all.
        val_images_per_prompt: validation images of each prompt, each with its own fixed noise.
        seed: of prompts, noise and order.
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
    ) -> None:
        super().__init__()
        at_least(1, **{"data.val_limit": val_limit, "data.val_images_per_prompt": val_images_per_prompt})
        self.train_source, self.val_source = train, val
        self._auto, self._settled = micro_batch == "auto", False
        size = 1 if micro_batch == "auto" else micro_batch  # divides everything, until it is settled
        self._sizes = (prompts_per_round, images_per_prompt, updates_per_round, inner_epochs, size)
        self.rollout_batch = _rollout_batch(micro_batch, rollout_batch)
        self.val_limit, self.val_images = val_limit, val_images_per_prompt
        self.seed = seed
        self.train, self.val = PromptSet(), PromptSet()
        self.plan: RoundPlan
        self._experience: ExperienceLoader | None = None
        self._restored: dict[str, Any] | None = None

    def setup(self, stage: str) -> None:
        """Read the prompts and derive the arithmetic for this number of processes."""
        assert self.trainer is not None
        module = self._module
        if stage == "validate" and not self.val_source:
            raise GuardlitError("validate needs data.val, the prompts whose images are scored; it is null")
        if self.val_source and not self.val:
            self.val = load_prompts(self.val_source, limit=self.val_limit)
        if stage == "fit" and not self.train:
            self.train = load_prompts(self.train_source)
        if 0 < len(self.val) * self.val_images < self.trainer.world_size:
            raise GuardlitError(
                f"{len(self.val) * self.val_images} validation images are fewer than {self.trainer.world_size} "
                "processes: raise data.val_images_per_prompt"
            )
        for prompt in (*self.train, *self.val):
            module.reward_runner.check_prompt(prompt)
        if stage == "fit":
            self.plan = self.planned(module.train_steps, self.trainer.world_size)
            self._accumulate(self.plan.micro_batches_per_update)
            self._settled = False

    def planned(self, train_steps: int, world: int) -> RoundPlan:
        """The batch arithmetic for so many trained steps and processes; the most of a micro-batch that is not settled.

        Raises:
            GuardlitError: numbers that do not divide.
        """
        plan = RoundPlan(*self._sizes, train_steps=train_steps, world=world)
        at_least(1, **{"data.rollout_batch": self.rollout_batch})
        return replace(plan, micro_batch=candidates(plan, self.rollout_batch)[0]) if self._auto else plan

    def settle(self) -> None:
        """Find the micro-batch of `auto`, if it is not known; to be called by all processes with the policy loaded."""
        if self._auto and not self._settled:
            round, policy = self.round(0), self._module.policy
            texts = [p.text for p in round.prompts]
            policy.encode_across_ranks(texts, round.ahead)
            sizes = candidates(self.plan, self.rollout_batch)
            self._settle(largest_that_fits(self._module, sizes, policy.conditioning(texts)))

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
        """Round `index` as this process sees it: a pure function of (seed, index) but for the rank."""
        assert self.trainer is not None

        def prompts(k: int) -> list[Prompt]:
            return [self.train[i] for i in self.plan.prompt_indices(self.seed, k, len(self.train))]

        if len(self.train) <= ENCODE_ALL:
            ahead = [p.text for p in (*self.train, *self.val)]
        else:
            ahead = [p.text for k in range(index, index + ENCODE_ROUNDS) for p in prompts(k)]
        rollout, rank = self._module.rollout, self.trainer.global_rank
        steps = rollout.available_steps
        return Round(index, prompts(index), ahead, self.plan, self.seed, rank, rollout.window, steps)

    @property
    def _module(self) -> GRPOModule:
        assert self.trainer is not None
        return cast("GRPOModule", self.trainer.lightning_module)

    def train_dataloader(self) -> ExperienceLoader:
        """The loader of rounds."""
        self._experience = ExperienceLoader(self, self._module)
        if self._restored is not None:
            self._experience.load_state(self._restored)
            self._restored = None
        return self._experience

    def val_dataloader(self) -> DataLoader[tuple[int, Prompt]] | list[Any]:
        """This process's share of the validation images: numbers and prompts, all prompts once, then again.

        All processes have the same number of batches, since a sharded policy needs all of them for every forward pass.
        Where one image a batch is asked for and images do not divide, some batches are of two.
        """
        assert self.trainer is not None
        world = self.trainer.world_size
        images = list(enumerate(self.val * self.val_images))
        mine = images[self.trainer.global_rank :: world]
        if not mine:
            return []
        most, least = math.ceil(len(images) / world), len(images) // world
        batches = min(math.ceil(most / self.rollout_batch), least)
        parts = [part.tolist() for part in torch.arange(len(mine)).tensor_split(batches)]
        return DataLoader(mine, batch_sampler=parts, collate_fn=list)  # type: ignore[arg-type]

    @property
    def finished_rounds(self) -> int | None:
        """Rounds behind the run while it stands between two of them; None within one."""
        loader = self._experience
        return loader.round_index if loader is not None and loader.position == 0 else None

    def position_in(self, checkpoint: Mapping[str, Any]) -> int:
        """The micro-batch of its round before which a checkpoint stands."""
        return self.plan.position(checkpoint.get(type(self).__qualname__, {}).get("transitions", 0))

    def state_dict(self) -> dict[str, Any]:
        """Round, position and the round's experience; called on every process."""
        return {} if self._experience is None else self._experience.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the loader exists; a run goes on with its micro-batch, or one that begins where it stands."""
        self._restored = state_dict
        assert self.trainer is not None
        if self._auto and state_dict and self.trainer.state.fn == "fit":
            sizes = candidates(self.plan, self.rollout_batch, state_dict["transitions"])
            if (had := state_dict.get("micro_batch")) in sizes:
                self._settle(had)
            elif sizes and state_dict["transitions"]:
                self._settle(sizes[0])


def _rollout_batch(micro_batch: int | Literal["auto"], given: int | None) -> int:
    if given is not None:
        return given
    if micro_batch == "auto":
        raise GuardlitError("data.micro_batch=auto needs data.rollout_batch, the most that it may take")
    return micro_batch


class ExperienceLoader:
    """A sized, lazy loader: each pass over it is one round, collected when the pass begins.

    Its length is known before anything is collected, so that Lightning prefetches nothing.
    """

    def __init__(self, data: PromptDataModule, module: GRPOModule) -> None:
        self._data, self._module = data, module
        self.round_index = 0
        self.position = 0
        self._experience: Experience | None = None
        self._resuming: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return self._data.plan.micro_batches

    def __iter__(self) -> Iterator[Transition]:
        if self._resuming is None and self._experience is not None:  # the last pass was cut short by the Trainer
            self.round_index += 1
            self.position, self._experience = 0, None
        return self._micro_batches()

    def _micro_batches(self) -> Iterator[Transition]:
        if self._experience is None:
            round = self._data.round(self.round_index)
            if self._resuming is not None:
                self._experience = self._module.restore_experience(self._resuming, round)
                self._resuming = None
            else:
                self._experience = self._module.collect(round, self._data.rollout_batch)
        experience = self._experience
        batches = self._data.plan.passes(self._data.seed, self.round_index)
        while self.position < len(batches):
            rows, steps = batches[self.position]
            micro_batch = experience.take(rows, steps)
            self.position += 1
            if self.position == len(batches):
                # before the last yield: a checkpoint at the round's end is small and starts the next round
                self.round_index += 1
                self.position, self._experience = 0, None
                yield micro_batch
                return
            yield micro_batch

    def state(self) -> dict[str, Any]:
        """Where the run stands; a round in progress comes along, gathered from all processes."""
        # in transitions of all processes, which any number of them takes in the same order
        plan = self._data.plan
        state: dict[str, Any] = {"round": self.round_index, "transitions": self.position * plan.stride}
        state["micro_batch"] = plan.micro_batch
        if self._experience is not None:
            state["experience"] = self._experience.state(partial(gather_on_first, self._module.trainer))
        elif self._resuming is not None:
            state["experience"] = self._resuming
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.round_index, self.position = state["round"], self._data.plan.position(state["transitions"])
        self._resuming = state.get("experience")
