"""Which denoising steps of an image are trained, and whether the others draw noise.

A sampler (`sde.py`) says what a step with noise looks like; a window says at which steps an image takes one. Steps
outside a window are Euler steps of the ODE, so that the reward is credited to the few that were left to chance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guardlit.rounds.noise import mix

_WINDOW = 4  # keeps these permutations apart from those of the batch plan


class Window(ABC):
    """A choice among the first `available` denoising steps of a rollout; a pure function of its arguments."""

    noise_elsewhere: bool = False
    """Whether steps that are not trained draw noise too."""

    @abstractmethod
    def size(self, available: int) -> int:
        """S, steps that are trained of each image; raises `ValueError` when so many are not there."""

    @abstractmethod
    def steps(self, available: int, seed: int, round: int, group: int, sample: int) -> list[int]:
        """The S trained steps of one image of a round, rising."""

    def trainable_range(self, available: int) -> tuple[int, int]:
        """The first step that the window holds in some round or other, and the first one beyond."""
        return 0, available

    def table(self, available: int, seed: int, round: int, images: int, images_per_prompt: int) -> Tensor:
        """The trained steps of each image of a round, (N, S) int64."""
        rows = [self.steps(available, seed, round, i // images_per_prompt, i) for i in range(images)]
        return torch.tensor(rows)


@dataclass(frozen=True)
class RandomSubset(Window):
    """Noise at every step, training at a random part of them, drawn for each image (DanceGRPO, arXiv 2505.07818).

    Attributes:
        fraction: share of the available steps that is trained; 0.6 in DanceGRPO on FLUX.1-dev.
    """

    fraction: float = 0.6
    noise_elsewhere = True

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} of a RandomSubset must lie in (0, 1]")

    def size(self, available: int) -> int:
        """S, rounded down."""
        size = int(available * self.fraction + 1e-9)
        if size < 1:
            raise ValueError(f"fraction={self.fraction} of {available} steps of a RandomSubset leaves none to train")
        return size

    def steps(self, available: int, seed: int, round: int, group: int, sample: int) -> list[int]:
        """The first S of a permutation of its own."""
        generator = torch.Generator().manual_seed(mix(seed, _WINDOW, round, sample))
        chosen: list[int] = torch.randperm(available, generator=generator)[: self.size(available)].tolist()
        return sorted(chosen)


@dataclass(frozen=True)
class RandomWindow(Window):
    """Noise and training in a run of steps that begins at random (Flow-GRPO-Fast).

    With `size: 1` and `rollout.initial_noise: group` it is TempFlow-GRPO's branching (arXiv 2508.04324): the images of
    a prompt part at one step, everything after it is deterministic, and the reward is credited to it.

    Attributes:
        length: S, steps in the window.
        low: first step that the window may hold.
        high: first step beyond what it may hold; null for all that are available.
        per: whether each `group` of images has a window of its own, or the whole `round` has one.
    """

    length: int = 2
    low: int = 0
    high: int | None = None
    per: Literal["group", "round"] = "group"

    def trainable_range(self, available: int) -> tuple[int, int]:
        """`low` and `high`."""
        return self.low, available if self.high is None else self.high

    def size(self, available: int) -> int:
        """S."""
        high = self.trainable_range(available)[1]
        if self.length < 1 or self.low < 0 or high > available or high - self.low < self.length:
            raise ValueError(
                f"a window of {self.length} steps in [{self.low}, {high}) does not lie within the {available} steps "
                "that can be trained"
            )
        return self.length

    def steps(self, available: int, seed: int, round: int, group: int, sample: int) -> list[int]:
        """One of the runs within [low, high), all equally likely."""
        starts = self.trainable_range(available)[1] - self.low - self.size(available) + 1
        key = mix(seed, _WINDOW, round, group) if self.per == "group" else mix(seed, _WINDOW, round)
        start = self.low + key % starts
        return list(range(start, start + self.length))


@dataclass(frozen=True)
class SlidingWindow(Window):
    """Noise and training in a run of steps that moves from the noisy end as training goes on (MixGRPO).

    Attributes:
        length: S, steps in the window; 4 in MixGRPO on FLUX.1-dev.
        every: rounds at one position; 25 there.
        overlap: steps that two neighbouring positions share; 1 there.
        roll_back: begin again after the last position; false stays there.
    """

    length: int = 4
    every: int = 25
    overlap: int = 1
    roll_back: bool = True

    def size(self, available: int) -> int:
        """S."""
        if not 0 <= self.overlap < self.length or self.every < 1 or self.length > available:
            raise ValueError(
                f"a sliding window of {self.length} steps that overlap by {self.overlap}, {self.every} rounds each, "
                f"needs 0 <= overlap < length <= {available} and every >= 1"
            )
        return self.length

    def steps(self, available: int, seed: int, round: int, group: int, sample: int) -> list[int]:
        """The run at the round's position; the last one ends with the last available step."""
        last = available - self.size(available)
        starts = [*range(0, last, self.length - self.overlap), last]
        position = round // self.every
        position = position % len(starts) if self.roll_back else min(position, len(starts) - 1)
        return list(range(starts[position], starts[position] + self.length))
