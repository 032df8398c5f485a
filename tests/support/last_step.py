"""An advantage for each denoising step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from guardlit.advantage import Advantages, GroupAdvantage


class LastStep(GroupAdvantage):
    """Gives the whole advantage of an image to its last trained step."""

    def __call__(
        self,
        rewards: Mapping[str, Tensor],
        group_ids: Tensor,
        weights: Mapping[str, float] | None = None,
        *,
        features: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Advantages:
        """Values (N, S)."""
        assert steps is not None
        whole = super().__call__(rewards, group_ids, weights, features=features)
        values = torch.zeros(steps.shape)
        values[:, -1] = steps.shape[1] * whole.values
        return replace(whole, values=values)


class OneForAll(GroupAdvantage):
    """Gives too few."""

    def __call__(self, *args: object, **kwargs: object) -> Advantages:
        """Values (1,)."""
        return Advantages(torch.ones(1), torch.ones(1, dtype=torch.bool), 0.0)
