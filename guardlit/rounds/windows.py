"""Which denoising steps of an image are trained, and whether the others draw noise.

A sampler (`sde.py`) defines a step with noise; a window selects the steps of an image that take one. Steps outside a
window are Euler steps of the ODE, so that the reward is credited to the few random ones.
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
        """S, trained steps of each image; raises `ValueError` where fewer are available."""

    @abstractmethod
    def steps(self, available: int, seed: int, round: int, group: int, sample: int) -> list[int]:
        """The S trained steps of one image of a round, rising."""

    def trainable_range(self, available: int) -> tuple[int, int]:
        """Half-open range of steps that any round may train."""
        return 0, available

    def table(self, available: int, seed: int, round: int, images: int, images_per_prompt: int) -> Tensor:
        """The trained steps of each image of a round, (N, S) int64."""
        rows = [self.steps(available, seed, round, i // images_per_prompt, i) for i in range(images)]
        return torch.tensor(rows)


@dataclass(frozen=True)
class RandomSubset(Window):
    """Noise at every step, training at a random subset, drawn for each image (DanceGRPO, arXiv 2505.07818).

    Attributes:
        fraction: of the available steps, the part that is trained; 0.6 in DanceGRPO on FLUX.1-dev.
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
        """The first S of a permutation of this image."""
        generator = torch.Generator().manual_seed(mix(seed, _WINDOW, round, sample))
        chosen: list[int] = torch.randperm(available, generator=generator)[: self.size(available)].tolist()
        return sorted(chosen)


@dataclass(frozen=True)
class RandomWindow(Window):
    """Noise and training in consecutive steps from a random start (Flow-GRPO-Fast).

    With `length: 1` and `rollout.initial_noise: group` it is TempFlow-GRPO's branching (arXiv 2508.04324): the images
    of a prompt branch at one step, everything after it is deterministic, and the reward is credited to it.

    Attributes:
        length: S, steps in the window.
        low: first step that the window may contain.
        high: end of the steps that it may contain, exclusive; null for all that are available.
        per: whether each `group` of images has its own window, or the whole `round` has one.
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
        """One of the windows within [low, high), all equally likely."""
        starts = self.trainable_range(available)[1] - self.low - self.size(available) + 1
        key = mix(seed, _WINDOW, round, group) if self.per == "group" else mix(seed, _WINDOW, round)
        start = self.low + key % starts
        return list(range(start, start + self.length))


@dataclass(frozen=True)
class SlidingWindow(Window):
    """Noise and training in consecutive steps that move from the noisy end during training (MixGRPO).

    Attributes:
        length: S, steps in the window; 4 in MixGRPO on FLUX.1-dev.
        every: rounds at one position; 25 there.
        overlap: steps that two neighboring positions share; 1 there.
        roll_back: start again after the last position; false stays there.
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
        """The window at the round's position; the last position ends with the last available step."""
        last = available - self.size(available)
        starts = [*range(0, last, self.length - self.overlap), last]
        position = round // self.every
        position = position % len(starts) if self.roll_back else min(position, len(starts) - 1)
        return list(range(starts[position], starts[position] + self.length))
