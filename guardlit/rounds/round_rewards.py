"""A round's rewards: gathered from all ranks, checked for failures, turned into advantages and metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from guardlit.advantage import Advantages, GroupAdvantage
from guardlit.errors import GuardlitError
from guardlit.gate import Gating
from guardlit.processes.world import World
from guardlit.rewards.reward import Reward
from guardlit.rounds.round import Round
from guardlit.types import RewardResult

AVERAGE = "average_reward/"
"""Prefix of a round's mean rewards. TensorBoard sorts groups of keys by name: this one is first."""

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

    reward: Reward
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
        failed = self._failed_fraction(self.reward.total(scores), batches, results)
        advantages = self._advantages(scores, results)
        if advantages.zero_std_share == 1:
            rank_zero_warn(self._no_spread())
        metrics = {"reward/failed": failed, "reward/zero_std_share": advantages.zero_std_share}
        if advantages.diversity is not None:
            metrics["reward/diversity"] = advantages.diversity
        return advantages, metrics | reward_metrics(self.reward, scores) | self._counters()

    def _advantages(self, scores: Mapping[str, Tensor], results: Sequence[RewardResult]) -> Advantages:
        """Of the round's N images, from raw scores by column, (N,) each."""
        steps, diversity = self.round.trained_steps, self.advantage.diversity
        features = None if diversity is None else self._gather_features(diversity, results)
        scaled, groups = self.reward.normalize(scores), self.round.group_ids
        found = self.advantage(scaled, groups, self.reward.weights, features=features, steps=steps)
        if found.values.shape not in (groups.shape, steps.shape) or found.mask.shape != groups.shape:
            raise GuardlitError(
                f"model.advantage: {type(self.advantage).__name__} gave values {tuple(found.values.shape)} and a mask "
                f"{tuple(found.mask.shape)}; values are {tuple(groups.shape)}, one per image, or {tuple(steps.shape)}, "
                f"one per image and trained step, and the mask is {tuple(groups.shape)}"
            )
        return found

    def _gather_features(self, term: str, results: Sequence[RewardResult]) -> Tensor:
        """Features of all ranks by image, (N, F) float32 on the CPU; NaN where a request failed. Collective."""
        width = self.world.largest(max(0 if r.features is None else r.features.shape[1] for r in results))
        rows = [torch.full((len(r.values), width), torch.nan) if r.features is None else r.features for r in results]
        mine = torch.cat([row.float().to(self.world.device) for row in rows])
        features = self.round.by_image(self.world.gather(mine)).cpu()
        failed = int((~features.isfinite()).any(1).sum()) if width else len(features)
        if failed > self.max_failed_fraction * len(features):
            reasons = self.world.gather_objects(next((r.reason for r in results if r.features is None), ""))
            raise GuardlitError(
                f"round {self.round.number}: '{term}' gave no features for {failed} of {len(features)} images, more "
                f"than max_failed_fraction={self.max_failed_fraction}; model.advantage.diversity needs them; "
                f"{next(filter(None, reasons), 'they are no numbers')}"
            )
        return features

    def kl_weight(self, gating: Gating | None, results: Sequence[RewardResult]) -> Tensor | None:
        """Factor of each image's KL penalty, (N,); None without a gate. Collective: every rank must call it.

        Args:
            gating: of the run; it moves on by a round.
            results: of each request of this rank.
        """
        if gating is None:
            return None
        weights = gating.weights(self.reward.normalize(self._gather(results)))
        if not bool(weights.any()):
            rank_zero_warn(
                f"round {self.round.number}: model.kl.gate penalizes no image: the scores of "
                f"{', '.join([gating.gate.proxy, *gating.others])} are too often equal, or failed"
            )
        return weights

    def _no_spread(self) -> str:
        return (
            f"round {self.round.number}: no group has any spread: reward '{self.reward.name}' gives all images of a "
            "prompt the same score, so every advantage is 0 and the round trains nothing; a reward must tell images of "
            "one prompt apart"
        )

    def _gather(self, results: Sequence[RewardResult]) -> dict[str, Tensor]:
        """Raw scores of all ranks by image, (N,) float32 each on the CPU; NaN where one failed."""
        columns = self.reward.columns(self.round.index)
        named = {name: torch.cat([result.details[name] for result in results]) for name in columns}
        gathered = {name: self.world.gather(values.to(self.world.device)) for name, values in named.items()}
        return {name: self.round.by_image(values).float().cpu() for name, values in gathered.items()}

    def _failed_fraction(
        self, total: Tensor, batches: Sequence[Sequence[int]], results: Sequence[RewardResult]
    ) -> float:
        """Fraction of the images whose reward failed; every rank sees all rewards, so that all stop at once."""
        failed = ~total.isfinite()
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
                    f"round {self.round.number}: {failed} of {self.round.plan.images} rewards failed, more than "
                    f"max_failed_fraction={self.max_failed_fraction}; the first on prompt '{prompt[:80]}' "
                    f"of rank {self.round.rank}; {result.reason}"
                )
        return None

    def _counters(self) -> dict[str, float]:
        """The scorers' counters over all ranks: sums, or the largest for names that end as in `TAKE_LARGEST`."""
        mine = {f"reward/{name}": value for name, value in self.reward.counters().items()}
        total: dict[str, float] = {}
        for counters in self.world.gather_objects(mine):
            for name, value in counters.items():
                merge = max if name.endswith(TAKE_LARGEST) else float.__add__
                total[name] = merge(total[name], float(value)) if name in total else float(value)
        return total


def check_comparing(reward: Reward, round: Round, batches: int, world_size: int) -> None:
    """Raise `GuardlitError` where a term compares the images of a prompt and a request would hold a part of them."""
    for name, term in reward.terms.items():
        if term.scorer.compares_images and batches * world_size > 1:
            raise GuardlitError(
                f"reward '{name}' compares the images of a prompt, and a round of {round.plan.images} images is drawn "
                f"in {batches} batches on {world_size} ranks, each with a part of a prompt's images; set "
                f"data.rollout_batch to {round.plan.images} on one rank, or watch it as a gold score"
            )


def reward_metrics(reward: Reward, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean, standard deviation and failures of a round's rewards; NaN is left out.

    Args:
        reward: that the scores are of.
        scores: raw, by column, (N,) each with NaN where one failed.
    """
    failed = {name: ~values.isfinite() for name, values in scores.items() if name != reward.name}
    metrics = {f"reward/{name}_failed": float(rows.double().mean()) for name, rows in failed.items()}
    for name, values in (*scores.items(), (reward.name, reward.total(scores))):
        metrics[f"{AVERAGE}{name}"], metrics[f"reward/{name}_std"] = _mean_and_std(values)
    for name, values in reward.normalize(scores).items():
        if values is not scores[name]:
            key = f"reward_normalized/{name}"
            metrics[f"{key}_mean"], metrics[f"{key}_std"] = _mean_and_std(values)
    return metrics


def _mean_and_std(values: Tensor) -> tuple[float, float]:
    """Of those that are finite; NaN where none is."""
    finite = values[torch.isfinite(values)].double()
    return float(finite.mean()), float(finite.std(correction=0)) if len(finite) else math.nan
