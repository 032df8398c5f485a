"""A scorer that can be made to fail."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult


class Brightness(Scorer):
    """Mean grey level in [0, 1]; NaN for prompts that contain `fail`."""

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


class TaggedBrightness(Brightness):
    """The mean over tasks: those that prompts' metadata name."""

    def task(self, metadata: Mapping[str, object]) -> str | None:
        """The tag."""
        return str(metadata["tag"])
