"""Advantages relative to a group: the images of one prompt compete with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guardlit.errors import at_least, positive

Aggregation = Literal["weighted_sum", "normalized", "gdpo"]


@dataclass(frozen=True)
class Advantages:
    """Advantages of a round.

    Attributes:
        values: (N,) float32; 0 where masked.
        mask: samples that count, (N,) bool: valid reward, and a group whose rewards differ.
        zero_std_share: fraction of the groups whose rewards are all equal, or that have fewer than two valid ones.
    """

    values: Tensor
    mask: Tensor
    zero_std_share: float


def _dense(group_ids: Tensor) -> tuple[Tensor, int]:
    """Group ids (N,) renumbered from 0, and how many there are."""
    found: tuple[Tensor, Tensor] = torch.unique(group_ids, return_inverse=True)
    return found[1], len(found[0])


def _group_sums(values: Tensor, groups: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, groups, values)


def weighted_sum(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum of weight x score over names; scores of weight 0 are left out, since 0 x NaN is NaN.

    Args:
        scores: by name, (N,) each.
        weights: of each score, at least one of them not 0.

    Raises:
        ValueError: no weight other than 0.
    """
    parts = [weight * scores[name] for name, weight in weights.items() if weight != 0]
    if not parts:
        raise ValueError(f"found the weights {dict(weights)}; at least one must not be 0")
    return sum(parts[1:], start=parts[0])


def group_relative(
    rewards: Tensor,
    group_ids: Tensor,
    std: Literal["group", "global", "none"] = "group",
    eps: float = 1e-4,
    clip: float | None = None,
) -> Tensor:
    """Rewards minus their group's mean, over a standard deviation (population, computed in float64).

    Args:
        rewards: (N,); NaN marks a failed reward, which is left out of every mean and deviation.
        group_ids: (N,) integers; the samples of a prompt have the same one.
        std: divide by the deviation of the group (GRPO), of all valid rewards (Flow-GRPO's `global_std`), or by none.
        eps: added to the deviation; 1e-4 in Flow-GRPO.
        clip: bound of the absolute value; 5 in Flow-GRPO.

    Returns:
        (N,) in the rewards' dtype; 0 for failed rewards and for groups without a spread.

    Raises:
        ValueError: the shapes differ.
    """
    if rewards.ndim != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            f"rewards and group_ids need one shape (N,), found {tuple(rewards.shape)}, {tuple(group_ids.shape)}"
        )
    valid = torch.isfinite(rewards)
    values = torch.where(valid, rewards, 0).double()
    groups, count = _dense(group_ids)
    members = _group_sums(valid.double(), groups, count).clamp(min=1)
    centered = torch.where(valid, values - (_group_sums(values, groups, count) / members)[groups], 0)
    group_std = (_group_sums(centered.square(), groups, count) / members).sqrt()
    if std == "group":
        centered = centered / (group_std[groups] + eps)
    elif std == "global":
        centered = centered / (values[valid].std(correction=0) + eps)
    centered = torch.where(_spread(rewards, groups, count)[groups], centered, 0)
    return (centered if clip is None else centered.clamp(-clip, clip)).to(rewards.dtype)


def _spread(rewards: Tensor, groups: Tensor, count: int) -> Tensor:
    """Whether a group has two different valid rewards, (count,) bool; exact, unlike a rounded deviation > 0."""
    valid = torch.isfinite(rewards)
    low = torch.full((count,), torch.inf, dtype=rewards.dtype).scatter_reduce(
        0, groups, torch.where(valid, rewards, torch.inf), "amin"
    )
    high = torch.full((count,), -torch.inf, dtype=rewards.dtype).scatter_reduce(
        0, groups, torch.where(valid, rewards, -torch.inf), "amax"
    )
    return high > low


@dataclass(frozen=True)
class GroupAdvantage:
    """How the rewards of a round become advantages.

    Attributes:
        std: deviation that divides: of the `group`, `global` over the round, or `none`.
        eps: added to the deviation.
        clip: bound of the absolute value; null for none.
        aggregation: of several rewards: `weighted_sum` of the scores; `normalized`, each made an advantage first, then
            summed by weight; `gdpo`, that sum brought to zero mean and unit deviation over the round (GDPO).
    """

    std: Literal["group", "global", "none"] = "group"
    eps: float = 1e-4
    clip: float | None = 5.0
    aggregation: Aggregation = "weighted_sum"

    def __post_init__(self) -> None:
        at_least(0, **{"advantage.eps": self.eps})
        positive(**{"advantage.clip": self.clip})

    def __call__(
        self, rewards: Mapping[str, Tensor], group_ids: Tensor, weights: Mapping[str, float] | None = None
    ) -> Advantages:
        """Advantages of N samples.

        Args:
            rewards: named rewards, each (N,) with NaN where one failed.
            group_ids: (N,).
            weights: of each reward, 1 by default; rewards of weight 0 are left out.
        """
        weights = {name: 1.0 for name in rewards} if weights is None else {k: w for k, w in weights.items() if w != 0}
        total = weighted_sum(rewards, weights)
        groups, count = _dense(group_ids)
        valid = torch.isfinite(total)
        # a sample counts only if all its rewards are valid: a failed one masks it in every term
        terms = {k: torch.where(valid, rewards[k], torch.nan) for k in weights}
        spreads = [_spread(r, groups, count) for r in ([total] if self._sums else terms.values())]
        alive = torch.stack(spreads).any(0)
        mask = valid & alive[groups]
        if self._sums:
            values = group_relative(total, group_ids, self.std, self.eps)
        else:
            parts = [w * group_relative(terms[k], group_ids, self.std, self.eps) for k, w in weights.items()]
            values = torch.stack(parts).sum(0)
        if self.aggregation == "gdpo" and bool(mask.any()):
            kept = values[mask].double()
            values = ((values - kept.mean()) / (kept.std(correction=0) + self.eps)).to(values.dtype)
        values = torch.where(mask, values, 0)
        if self.clip is not None:
            values = values.clamp(-self.clip, self.clip)
        return Advantages(values.float(), mask, 1 - float(alive.double().mean()))

    @property
    def _sums(self) -> bool:
        return self.aggregation == "weighted_sum"
