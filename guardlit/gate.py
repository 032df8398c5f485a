"""Which images of a round the KL penalty is for: those whose proxy is uncertain (GARDO, arXiv 2512.24138)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guardlit.errors import GuardlitError

STEP, REMEMBERED = 0.1, 20
"""By how much the fraction moves in a round, relative to itself; rounds whose means it is decided by. As published."""


@dataclass(frozen=True)
class UncertaintyGate:
    """A gate that penalizes the images which the proxy ranks high and other scorers rank low.

    Over all images of a round each score gives a rank, 1 for the highest; equal scores share their mean rank. The
    uncertainty of an image is u = mean of its ranks by the auxiliaries - its rank by the proxy, as in the paper: the
    proxy is doubted where it likes an image better than the others do. (The published code subtracts the other way
    round, and so selects the images that the auxiliaries like better; here the paper is followed.) Of the images with
    u >= 0, the fraction with the largest u gets a penalty: those above the percentile 100 - 100 x fraction.

    Attributes:
        proxy: name of a term of the reward.
        auxiliaries: names of other terms, which may have weight 0; null takes all others. Normalized scores are ranked,
            so that `divide: -1` makes lower scores the better ones.
        fraction: of the images with u >= 0, in the first round.
        adapt: raise the fraction by a tenth where the mean of u >= 0 is above those of the last 20 rounds, and lower it
            by a tenth where it is below them.
        limits: the smallest and the largest fraction; only with `adapt`.
    """

    proxy: str
    auxiliaries: tuple[str, ...] | None = None
    fraction: float = 0.1
    adapt: bool = True
    limits: tuple[float, float] = (0.02, 0.2)

    def __post_init__(self) -> None:
        low, high = self.limits
        if not 0 < self.fraction <= 1:
            raise GuardlitError(f"kl.gate.fraction={self.fraction} must be above 0 and at most 1")
        if self.adapt and not 0 < low <= self.fraction <= high <= 1:
            raise GuardlitError(
                f"kl.gate.limits={list(self.limits)} must rise within 0 to 1 and enclose fraction={self.fraction}; "
                "with adapt: false they are not used"
            )

    def others(self, terms: Mapping[str, int]) -> tuple[str, ...]:
        """The auxiliaries' names.

        Args:
            terms: of the reward by name, with the number of rounds from one scoring to the next.

        Raises:
            GuardlitError: a name that is no term, no auxiliary, or one that is not scored in every round.
        """
        known = ", ".join(terms)
        if self.proxy not in terms:
            raise GuardlitError(f"kl.gate.proxy={self.proxy} is no term of the reward, whose terms are {known}")
        others = self.auxiliaries
        if others is None:
            others = tuple(name for name in terms if name != self.proxy)
        if not others:
            raise GuardlitError(
                "kl.gate compares the proxy with other scorers, and the reward has no other term: make it a Composite "
                "with terms of weight 0, or leave the gate out"
            )
        for name in others:
            if name not in terms or name == self.proxy:
                raise GuardlitError(f"kl.gate.auxiliaries: {name} is no other term of the reward, which has {known}")
        for name in (self.proxy, *others):
            if terms[name] != 1:
                raise GuardlitError(
                    f"kl.gate: {name} is scored every {terms[name]} rounds, and the gate needs it in each: set the "
                    "term's every to 1, or choose other terms"
                )
        return others


def ranks(scores: Tensor) -> Tensor:
    """Ranks of M scores: 1 for the highest, the mean rank for equal ones.

    Args:
        scores: (M,), finite.

    Returns:
        (M,) float64.
    """
    rising = scores.sort().values
    below, up_to = (torch.searchsorted(rising, scores, right=right).double() for right in (False, True))
    return len(scores) - (below + up_to - 1) / 2


def uncertainty(proxy: Tensor, auxiliaries: Sequence[Tensor]) -> Tensor:
    """How much better the proxy ranks each image than the auxiliaries do on average.

    Args:
        proxy: scores, (N,); NaN where one failed.
        auxiliaries: the same of each auxiliary. An image with a failed score is left out of every ranking.

    Returns:
        (N,) float64; NaN for images that are left out.
    """
    counted = torch.stack([proxy, *auxiliaries]).isfinite().all(dim=0)
    others = torch.stack([ranks(scores[counted]) for scores in auxiliaries]).mean(dim=0)
    found = torch.full(proxy.shape, math.nan, dtype=torch.float64)
    found[counted] = others - ranks(proxy[counted])
    return found


class Gating:
    """The gate of a run, and its fraction, which moves from round to round.

    Args:
        gate: the settings.
        terms: as for `UncertaintyGate.others`, whose errors this raises.
    """

    def __init__(self, gate: UncertaintyGate, terms: Mapping[str, int]) -> None:
        self.gate, self.others = gate, gate.others(terms)
        self.fraction = gate.fraction
        """Of the images with u >= 0, in the round that was gated last."""
        self.means: list[float] = []
        """Of u >= 0, in the last rounds."""

    def weights(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Factor of each image's penalty in a round: 1 where the gate lets the penalty through, else 0.

        Args:
            scores: by term, normalized, (N,) each on the CPU, NaN where one failed; of all ranks.

        Returns:
            (N,) float32; 0 for images with a failed score.
        """
        u = uncertainty(scores[self.gate.proxy], [scores[name] for name in self.others])
        doubted = u[u >= 0]  # NaN is not
        if not len(doubted):
            return torch.zeros(len(u))
        if self.gate.adapt:
            self._adapt(float(doubted.mean()))
        return (u > torch.quantile(doubted, 1 - self.fraction)).float()

    def _adapt(self, mean: float) -> None:
        low, high = self.gate.limits
        if self.means and mean > max(self.means):
            self.fraction = min(self.fraction * (1 + STEP), high)
        elif self.means and mean < min(self.means):
            self.fraction = max(self.fraction * (1 - STEP), low)
        self.means = [*self.means, mean][-REMEMBERED:]

    def state_dict(self) -> dict[str, Any]:
        """The fraction and the means, for a checkpoint."""
        return {"fraction": self.fraction, "means": list(self.means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; an empty state is that of the run's start."""
        self.fraction = state.get("fraction", self.gate.fraction)
        self.means = list(state.get("means", []))
