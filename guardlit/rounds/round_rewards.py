"""A round's rewards: gathered from all ranks, checked for failures, turned into advantages and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardlit.advantage import Advantages, GroupAdvantage
from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rewards.base import Scorer
from guardlit.rounds.round import Round
from guardlit.types import RewardResult

TAKE_LARGEST = ("_p50", "_p95", "_max", "_share", "_s", "_ms")
"""Suffixes of counters whose sum over ranks means nothing: statistics and units."""


@dataclass(frozen=True)
class RoundRewards:
    """Turns the rewards of a round into advantages and metrics, the same on every rank.

    Attributes:
        reward: that the results are of.
        advantage: how rewards become advantages.
        max_failed_fraction: of a round's rewards; more failed ones stop the run.
        round: that was drawn.
        world: the ranks.
    """

    reward: Scorer
    advantage: GroupAdvantage
    max_failed_fraction: float
    round: Round
    world: World

    def finish(
        self, batches: Sequence[Sequence[int]], results: Sequence[RewardResult]
    ) -> tuple[Advantages, dict[str, float]]:
        """Advantages and metrics of the round. Collective: every rank must call it.

        Args:
            batches: samples of each request of this rank.
            results: of each request.

        Raises:
            GuardlitError: too many rewards failed; on every rank.
        """
        scores = self._gather(results)
        normalized = self.reward.normalize(scores)
        failed = self._failed_fraction(normalized, batches, results)
        advantages = self.advantage(normalized, self.round.group_ids, self.reward.weights or None)
        metrics = {"reward/failed": failed, "reward/zero_std_share": advantages.zero_std_share}
        return advantages, metrics | reward_metrics(self.reward, scores) | self._counters()

    def _gather(self, results: Sequence[RewardResult]) -> dict[str, Tensor]:
        """Raw scores of all ranks by image, (N,) float32 each on the CPU; NaN where one failed."""
        columns = self.reward.columns(self.round.index)
        named = {name: torch.cat([_column(result, name, self.reward) for result in results]) for name in columns}
        gathered = {name: self.world.gather(values.to(self.world.device)) for name, values in named.items()}
        return {name: self.round.by_image(values).float().cpu() for name, values in gathered.items()}

    def _failed_fraction(
        self, scores: Mapping[str, Tensor], batches: Sequence[Sequence[int]], results: Sequence[RewardResult]
    ) -> float:
        """Fraction of the images whose reward failed; every rank sees all rewards, so that all stop at once."""
        weights = self.reward.weights or dict.fromkeys(scores, 1.0)
        failed = ~torch.stack([scores[name].isfinite() for name, weight in weights.items() if weight != 0]).all(0)
        fraction = float(failed.double().mean())
        if fraction > self.max_failed_fraction:
            self.world.raise_on_all(self._too_many(int(failed.sum()), batches, results))
        return fraction

    def _too_many(
        self, failed: int, batches: Sequence[Sequence[int]], results: Sequence[RewardResult]
    ) -> GuardlitError | None:
        """The error of `failed` failures, with this rank's first one; None where it has none."""
        for samples, result in zip(batches, results, strict=True):
            if not bool(result.valid.all()):
                prompt = self.round.prompt_of(samples[int((~result.valid).nonzero()[0])]).text
                return GuardlitError(
                    f"round {self.round.index}: {failed} of {self.round.plan.images} rewards failed, more than "
                    f"max_failed_fraction={self.max_failed_fraction}; the first on prompt '{prompt[:80]}' "
                    f"of rank {self.round.rank}; {result.reason}"
                )
        return None

    def _counters(self) -> dict[str, float]:
        """The scorers' counters over all ranks: sums, or the largest for names that end as in `TAKE_LARGEST`."""
        terms = self.reward.terms()
        mine = {f"reward/{name}/{key}": value for name, term in terms.items() for key, value in term.counters().items()}
        total: dict[str, float] = {}
        for counters in self.world.gather_objects(mine):
            for name, value in counters.items():
                merge = max if name.endswith(TAKE_LARGEST) else float.__add__
                total[name] = merge(total[name], float(value)) if name in total else float(value)
        return total


def _column(result: RewardResult, name: str, reward: Scorer) -> Tensor:
    """One of a result's scores, (B,); NaN where it failed, or is missing because the whole request failed."""
    if not reward.weights:
        return torch.where(result.valid, result.values, torch.nan)
    return result.details.get(name, torch.full_like(result.values, torch.nan))


def reward_metrics(reward: Scorer, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean, standard deviation and failures of a round's rewards; NaN is left out.

    Args:
        reward: that the scores are of.
        scores: raw, by term, (N,) each with NaN where one failed.
    """
    normalized, weights = reward.normalize(scores), reward.weights
    metrics = {}
    columns = {f"reward/{name}": values for name, values in scores.items()}
    columns |= {f"reward_normalized/{name}": v for name, v in normalized.items() if v is not scores[name]}
    if weights:
        metrics = {f"reward/{name}_failed": float((~v.isfinite()).double().mean()) for name, v in scores.items()}
        parts = [weight * normalized[name] for name, weight in weights.items() if weight != 0]
        columns[f"reward/{reward.name}"] = torch.stack(parts).sum(0)
    for name, values in columns.items():
        finite = values[torch.isfinite(values)].double()
        metrics[f"{name}_mean"] = float(finite.mean())
        metrics[f"{name}_std"] = float(finite.std(correction=0)) if len(finite) else math.nan
    return metrics
