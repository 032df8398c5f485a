"""A round before it is drawn: its prompts, and which rank draws which image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.windows import Window
from guardlit.types import Prompt


@dataclass(frozen=True)
class Round:
    """What is to be collected: the prompts of one round, and who draws which image.

    Attributes:
        index: of the round, from 0.
        prompts: P prompts; sample i of the round belongs to prompt i // K.
        ahead: texts of later rounds, to encode many at once.
        plan: the arithmetic.
        seed: of the run.
        rank: this one.
        window: which of an image's steps are trained; null for the first S.
        available_steps: steps that a window can choose from.
    """

    index: int
    prompts: list[Prompt]
    ahead: Sequence[str]
    plan: RoundPlan
    seed: int
    rank: int = 0
    window: Window | None = None
    available_steps: int = 0

    @property
    def number(self) -> int:
        """Of the round, from 1, as messages and files count."""
        return self.index + 1

    @cached_property
    def order(self) -> Tensor:
        """Position -> image, (N,)."""
        return self.plan.order(self.seed, self.index)

    @cached_property
    def samples(self) -> list[int]:
        """Images of this rank by local row."""
        local: list[int] = self.order[self.rank :: self.plan.world_size].tolist()
        return local

    @cached_property
    def trained_steps(self) -> Tensor:
        """The S trained steps of each image, rising, (N, S)."""
        images, group = self.plan.images, self.plan.images_per_prompt
        if self.window is None:
            return torch.arange(self.plan.train_steps).expand(images, -1)
        return self.window.table(self.available_steps, self.seed, self.index, images, group)

    def noisy_steps(self, samples: Sequence[int], num_steps: int) -> Tensor:
        """Which of T steps draw noise where the sampler has some, (B, T) bool, of B images."""
        if self.window is None or self.window.noise_elsewhere:
            return torch.ones(len(samples), num_steps, dtype=torch.bool)
        noisy = torch.zeros(len(samples), num_steps, dtype=torch.bool)
        return noisy.scatter(1, self.trained_steps[list(samples)], True)

    @property
    def group_ids(self) -> Tensor:
        """Group of image i, (N,)."""
        return torch.arange(self.plan.images) // self.plan.images_per_prompt

    def prompt_of(self, sample: int) -> Prompt:
        """The prompt of image `sample`."""
        return self.prompts[sample // self.plan.images_per_prompt]

    def sample_weights(self, mask: Tensor) -> Tensor:
        """Factor of each image's loss, (N,): 0 for masked images, the others 1 on average over their update.

        So the mean over an update is the mean over its remaining images; the same on every rank.
        """
        updates = mask[self.order].float().view(self.plan.updates_per_epoch, -1)
        updates = updates / updates.mean(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        weights = torch.empty(self.plan.images)
        weights[self.order] = updates.flatten()
        return weights

    def by_image(self, gathered: Tensor) -> Tensor:
        """Rows of all ranks, (world size, n, ...) -> (N, ...) by image."""
        by_position = gathered.transpose(0, 1).flatten(0, 1)
        out = torch.empty_like(by_position)
        out[self.order.to(out.device)] = by_position
        return out
