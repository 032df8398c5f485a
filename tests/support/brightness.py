"""A scorer that can be made to fail."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from guardlit.rewards.base import Scorer
from guardlit.types import Prompt, RewardRequest, RewardResult


class Brightness(Scorer):
    """Mean gray level in [0, 1]; NaN for prompts that contain `fail`."""

    def __init__(self, fail: str = "") -> None:
        self.fail = fail

    def setup(self, device: torch.device) -> None:
        """Nothing to load."""

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        values = request.images.float().mean((1, 2, 3)) / 255
        for i, prompt in enumerate(request.prompts):
            if self.fail and self.fail in prompt:
                values[i] = torch.nan
        return RewardResult.from_values(values)


class Contrast(Brightness):
    """Standard deviation of the gray levels in [0, 1].

    Args:
        levels: number of different values between 0 and 1; with 200 a pixel that was rounded otherwise decides nothing.
    """

    def __init__(self, levels: int = 1_000_000) -> None:
        super().__init__()
        self.levels = levels

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        values = (request.images.float() / 255).std((1, 2, 3), correction=0)
        return RewardResult.from_values((values * self.levels).round() / self.levels)


class Colors(Brightness):
    """Mean gray level, with the mean of each color as features."""

    embeds_images = True

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        colors = request.images.float().mean((2, 3)) / 255
        return RewardResult.from_values(colors.mean(1), features=colors)


class TaggedBrightness(Brightness):
    """The mean over tasks: those that prompts' metadata name."""

    def task(self, metadata: Mapping[str, object]) -> str | None:
        """The tag."""
        return str(metadata["tag"])


class FailsAt(Brightness):
    """Mean gray level to half a percent, so that a pixel that was rounded otherwise decides nothing.

    It is NaN for the image at one position of each round's order, whichever process draws it; prompts whose metadata
    say `val` are left alone.

    Args:
        position: from 0.
        images: of a round; they must be drawn one by one.
    """

    def __init__(self, position: int, images: int) -> None:
        super().__init__()
        self.position, self.images, self._asked = position, images, 0

    def self_test(self, prompts: list[Prompt]) -> torch.Tensor:
        """Not what is tested here, and not to be counted."""
        return torch.zeros(2)

    def score(self, request: RewardRequest) -> RewardResult:
        """One value; several in validation."""
        if request.metadata[0].get("val"):
            return super().score(request)
        assert len(request) == 1
        world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
        position = (self._asked * world + rank) % self.images
        self._asked += 1
        values = (super().score(request).values * 200).round() / 200
        return RewardResult.from_values(torch.full_like(values, torch.nan) if position == self.position else values)
