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
        values: (N,) float32, of each image; or (N, S), of each of its trained steps; 0 where masked.
        mask: samples that count, (N,) bool: valid reward, and a group whose rewards differ.
        zero_std_share: fraction of the groups whose rewards are all equal, or that have fewer than two valid ones.
        diversity: mean cosine distance of an image to the nearest one of its group; None without features.
    """

    values: Tensor
    mask: Tensor
    zero_std_share: float
    diversity: float | None = None


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


def nearest_distances(features: Tensor, group_ids: Tensor) -> Tensor:
    """Cosine distance, 1 - cos, of each sample's features to the nearest ones of its group, in [0, 2].

    Args:
        features: (N, F); a row with NaN, or of length 0, is left out.
        group_ids: (N,).

    Returns:
        (N,) float64; exactly 0 between equal rows, NaN where a row is left out or has no other in its group.
    """
    rows = features.double()
    lengths = rows.norm(dim=1, keepdim=True)
    known = (lengths.isfinite() & (lengths > 0))[:, 0]
    units = rows / lengths
    nearest = torch.full((len(rows),), torch.nan, dtype=torch.float64, device=rows.device)
    groups, count = _dense(group_ids)
    for group in range(count):
        members = known & (groups == group)
        if int(members.sum()) > 1:
            # of unit vectors 1 - cos is half the squared distance; a sum of differences is 0 where they are equal
            apart = torch.cdist(units[members], units[members], compute_mode="donot_use_mm_for_euclid_dist")
            nearest[members] = apart.fill_diagonal_(torch.inf).amin(dim=1).square() / 2
    return nearest


def diversity_factors(distances: Tensor, group_ids: Tensor) -> Tensor:
    """Distances over their group's mean (GARDO, arXiv:2512.24138): above 1 for an image that is unlike its group's.

    Args:
        distances: of each sample to its nearest, (N,); NaN where it is not known.
        group_ids: (N,).

    Returns:
        (N,) float64; 1 where the distance is not known, and in a group of equal images, whose mean is 0.
    """
    groups, count = _dense(group_ids)
    known = distances.isfinite()
    found = torch.where(known, distances, 0).double()
    members = _group_sums(known.double(), groups, count).clamp(min=1)
    mean = (_group_sums(found, groups, count) / members)[groups]
    return torch.where(known & (mean > 0), found / mean, 1)


@dataclass(frozen=True)
class GroupAdvantage:
    """How the rewards of a round become advantages.

    A subclass may give each trained step its own: it returns `Advantages` whose values are (N, S).

    Attributes:
        std: deviation that divides: of the `group`, `global` over the round, or `none`.
        eps: added to the deviation.
        clip: bound of the absolute value; null for none.
        aggregation: of several rewards: `weighted_sum` of the scores; `normalized`, each made an advantage first, then
            summed by weight; `gdpo`, that sum brought to zero mean and unit deviation over the round (GDPO).
        diversity: name of the reward term whose features tell the images of a group apart: positive advantages are
            multiplied by `diversity_factors` (GARDO, which takes std `none`); null for none.
    """

    std: Literal["group", "global", "none"] = "group"
    eps: float = 1e-4
    clip: float | None = 5.0
    aggregation: Aggregation = "weighted_sum"
    diversity: str | None = None

    def __post_init__(self) -> None:
        at_least(0, **{"advantage.eps": self.eps})
        positive(**{"advantage.clip": self.clip})

    def __call__(
        self,
        rewards: Mapping[str, Tensor],
        group_ids: Tensor,
        weights: Mapping[str, float] | None = None,
        *,
        features: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Advantages:
        """Advantages of N samples.

        Args:
            rewards: named rewards, each (N,) with NaN where one failed.
            group_ids: (N,).
            weights: of each reward, 1 by default; rewards of weight 0 are left out.
            features: of each image, (N, F) with NaN where they failed; needed with `diversity`.
            steps: the trained steps of each image, (N, S); for subclasses, here all of them get the same.

        Raises:
            ValueError: `diversity` without features.
        """
        if self.diversity is not None and features is None:
            raise ValueError(f"advantage.diversity={self.diversity}: found no features; they are needed for each image")
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
        found = None
        if self.diversity is not None and features is not None:
            distances = nearest_distances(torch.where(valid[:, None], features, torch.nan), group_ids)
            values = torch.where(values > 0, values * diversity_factors(distances, group_ids), values)
            found = float(distances.nanmean())
        values = torch.where(mask, values, 0)
        if self.clip is not None:
            values = values.clamp(-self.clip, self.clip)
        return Advantages(values.float(), mask, 1 - float(alive.double().mean()), found)

    @property
    def _sums(self) -> bool:
        return self.aggregation == "weighted_sum"
