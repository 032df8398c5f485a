"""The batch arithmetic of a round, and which rank trains on what in which micro-batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rounds.noise import mix

_PROMPTS, _ORDER, _EPOCH = 1, 2, 3  # what a permutation is for: keeps their seeds apart
MOST_IMAGES = 10_000_000


@dataclass(frozen=True)
class RoundPlan:
    """How a round's images become updates.

    Attributes:
        prompts_per_round: P, groups.
        images_per_prompt: K, the group's size.
        updates_per_round: optimizer steps on one round's images, over all inner epochs.
        inner_epochs: passes over the images.
        micro_batch: transitions (one image at one denoising step) per forward and backward pass on a rank.
        train_steps: S, denoising steps that are trained of each image.
        world_size: number of ranks.
        at_most: the micro-batch that was asked for, where one that divides is smaller; None where it is `micro_batch`.

    Raises:
        GuardlitError: numbers that do not divide.
    """

    prompts_per_round: int
    images_per_prompt: int
    updates_per_round: int
    inner_epochs: int
    micro_batch: int
    train_steps: int
    world_size: int = 1
    at_most: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise GuardlitError(f"{name}={value} must be at least 1")
        if self.images_per_prompt < 2:
            raise GuardlitError(
                "images_per_prompt=1: advantages are relative to a group, which needs at least 2 images"
            )
        if self.images > MOST_IMAGES:
            raise GuardlitError(
                f"prompts_per_round={self.prompts_per_round} x images_per_prompt={self.images_per_prompt} are "
                f"{self.images} images a round, more than the {MOST_IMAGES} that one may have"
            )
        self._divide("updates_per_round", self.updates_per_round, "inner_epochs", self.inner_epochs)
        images = f"images of a round ({self.prompts_per_round} prompts x {self.images_per_prompt} images)"
        self._divide(images, self.images, "updates per inner epoch", self.updates_per_epoch)
        self._divide("images per update", self.images // self.updates_per_epoch, "world size", self.world_size)
        transitions = (
            f"transitions per update and rank ({self.images_per_update} images x {self.train_steps} trained steps)"
        )
        self._divide(transitions, self.images_per_update * self.train_steps, "micro_batch", self.micro_batch)

    @staticmethod
    def _divide(name: str, number: int, by: str, divisor: int) -> None:
        if number % divisor:
            near = [d for d in range(1, number + 1) if number % d == 0]
            options = sorted(sorted(near, key=lambda d: abs(d - divisor))[:3])
            raise GuardlitError(
                f"{name} = {number} is not divisible by {by} = {divisor}; it is by {', '.join(map(str, options))}"
            )

    @property
    def images(self) -> int:
        """N, images of a round on all ranks."""
        return self.prompts_per_round * self.images_per_prompt

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer steps in one pass over the images."""
        return self.updates_per_round // self.inner_epochs

    @property
    def images_per_update(self) -> int:
        """Images that one rank contributes to an update."""
        return self.images // self.updates_per_epoch // self.world_size

    @property
    def local_images(self) -> int:
        """Images of a round on one rank."""
        return self.images // self.world_size

    @property
    def micro_batches_per_update(self) -> int:
        """Forward and backward passes of a rank per optimizer step: Lightning's `accumulate_grad_batches`."""
        return self.images_per_update * self.train_steps // self.micro_batch

    @property
    def micro_batches(self) -> int:
        """Training batches of a Lightning epoch."""
        return self.micro_batches_per_update * self.updates_per_round

    @property
    def off_policy_updates(self) -> int:
        """Updates of a round whose ratio can differ from 1: all but the first."""
        return self.updates_per_round - 1

    @property
    def stride(self) -> int:
        """Transitions of a micro-batch on all ranks."""
        return self.micro_batch * self.world_size

    def position(self, transitions: int) -> int:
        """The index of the micro-batch that starts after that many transitions of a round, on all ranks.

        Raises:
            GuardlitError: no micro-batch starts there.
        """
        position, rest = divmod(transitions, self.stride)
        if rest:
            raise GuardlitError(
                f"the checkpoint stands {transitions} transitions into a round, where no micro-batch starts with world "
                f"size {self.world_size} x data.micro_batch = {self.stride}: let this divide {transitions}, or resume "
                "from the end of a round"
            )
        return position

    def prompt_indices(self, seed: int, round: int, available: int) -> list[int]:
        """Which prompts a round uses: a walk through seeded permutations, so that all come up equally often.

        Args:
            seed: of the run.
            round: index of the round.
            available: prompts in the set.

        Returns:
            P indices; the same on every rank.
        """
        first = round * self.prompts_per_round
        return walk(range(first, first + self.prompts_per_round), available, seed, _PROMPTS)

    def order(self, seed: int, round: int) -> Tensor:
        """The images' order of training, a permutation (N,) of 0 ... N - 1; image i belongs to prompt i // K.

        Position p belongs to update p // (N / updates per epoch) and to rank p mod world size, so that an update has
        the same images at any world size.
        """
        return _permutation(self.images, mix(seed, _ORDER, round))

    def passes(self, seed: int, round: int) -> list[tuple[list[int], list[int]]]:
        """The micro-batches of one rank: (local rows, slots) of each, over all inner epochs.

        A rank's row q is position q * world size + rank; slot k of S is the k-th of an image's trained steps, the same
        step for all images unless a window chooses them. Inside an update the order is by slot, so that a micro-batch
        that divides the images of an update stays at one timestep. Later inner epochs take the updates in a new order.
        """
        rows = self.images_per_update
        batches = []
        for epoch in range(self.inner_epochs):
            updates = torch.arange(self.updates_per_epoch)
            if epoch:
                updates = _permutation(self.updates_per_epoch, mix(seed, _EPOCH, round, epoch))
            for update in updates.tolist():
                pairs = [(update * rows + q, slot) for slot in range(self.train_steps) for q in range(rows)]
                for start in range(0, len(pairs), self.micro_batch):
                    chunk = pairs[start : start + self.micro_batch]
                    batches.append(([q for q, _ in chunk], [slot for _, slot in chunk]))
        return batches

    def describe(self) -> str:
        """The arithmetic in words, printed once at the start."""
        many = self.world_size > 1
        transitions = self.images * self.train_steps
        lines = [
            f"images per round    {self.prompts_per_round} prompts x {self.images_per_prompt} = {self.images}"
            + (f", {self.local_images} on each of {self.world_size} ranks" if many else ""),
            f"transitions         {self.images} images x {self.train_steps} trained steps = {transitions}"
            + (f", in {self.inner_epochs} inner epochs" if self.inner_epochs > 1 else ""),
            f"updates per round   {self.updates_per_round}, each on {self.images // self.updates_per_epoch} images in"
            f" {self.micro_batches_per_update} micro-batches of {self.micro_batch}{' per rank' if many else ''}"
            + (f" (micro_batch allows {self.at_most})" if self.at_most else ""),
            f"off-policy          {self.off_policy_updates} of {self.updates_per_round} updates;"
            " in the first the ratio is 1 and the clip cannot act",
        ]
        return "\n".join(lines)


def candidates(plan: RoundPlan, most: int, done: int = 0, one_step: bool = False) -> list[int]:
    """Micro-batch sizes that divide the transitions of an update on a rank, the largest first.

    Args:
        plan: of a round.
        most: the largest size that is allowed.
        done: transitions of the round that are done already; a micro-batch must start there.
        one_step: only sizes that divide the images of an update on a rank: a micro-batch has one slot then.
    """
    transitions = plan.images_per_update * (1 if one_step else plan.train_steps)
    sizes = range(min(most, transitions), 0, -1)
    return [size for size in sizes if transitions % size == 0 and done % (size * plan.world_size) == 0]


def walk(positions: Iterable[int], available: int, *seed: int) -> list[int]:
    """Items at some positions of a walk through seeded permutations, so that all come up equally often.

    Args:
        positions: from 0.
        available: number of items.
        seed: one or several numbers.
    """
    return [int(_walk(available, mix(*seed, p // available))[p % available]) for p in positions]


@lru_cache(maxsize=4)  # a million prompts take 40 ms to permute, and every round asks about 64 rounds ahead
def _walk(n: int, seed: int) -> Tensor:
    return _permutation(n, seed)


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def read_micro_batches(callbacks: Iterable[object]) -> bool:
    """Whether a callback reads the gradient of each micro-batch: its attribute `reads_micro_batches` is true.

    The run then has micro-batches of one denoising step each and, under DDP, reduces gradients at every backward pass.
    """
    return any(getattr(callback, "reads_micro_batches", False) for callback in callbacks)
