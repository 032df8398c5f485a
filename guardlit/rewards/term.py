"""A term of a reward: a scorer with a weight and a normalizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult


@dataclass(frozen=True)
class Affine:
    """The normalizer (score - shift) / scale.

    Attributes:
        shift: the score that becomes 0.
        scale: the change of the score that becomes 1.
    """

    shift: float
    scale: float


@dataclass
class Term:
    """One scorer of a reward.

    The raw score is logged. Before it is weighted, a normalizer brings it to the scale of the other terms: `divide`,
    `affine`, or none.

    Attributes:
        scorer: what scores.
        weight: factor in the sum; a term of weight 0 is scored and logged, but not trained on.
        name: name of the term in logs and `RewardResult.details`; the scorer's if left out.
        divide: normalizer score / divide, e.g. 26 for PickScore.
        affine: normalizer (score - shift) / scale, e.g. shift 18 and scale 8 for PickScore.
        every: a term of weight 0 is scored every so many rounds only, counted from the first round of the run.
    """

    scorer: Scorer
    weight: float = 1.0
    name: str | None = None
    divide: float = 1.0
    affine: Affine | None = None
    every: int = 1

    def __post_init__(self) -> None:
        self.name = self.name or self.scorer.name
        what = f"of the reward term {self.name!r} is"
        if not math.isfinite(self.weight):
            raise ValueError(f"weight {what} {self.weight}; it must be a finite number")
        if not math.isfinite(self.divide) or self.divide == 0:
            raise ValueError(f"divide {what} {self.divide}; it must be finite and not 0")
        if self.affine is not None and self.divide != 1:
            raise ValueError(f"divide {what} {self.divide} and affine is given too; take one of them")
        numbers = (0.0, 1.0) if self.affine is None else (self.affine.shift, self.affine.scale)
        if not all(map(math.isfinite, numbers)) or numbers[1] == 0:
            raise ValueError(f"affine {what} {self.affine}; shift and scale must be finite, and scale not 0")
        if self.every < 1 or (self.every > 1 and self.trained):
            raise ValueError(
                f"every {what} {self.every} with weight {self.weight:g}; it must be at least 1, "
                "and only a term of weight 0 can leave rounds out"
            )

    @property
    def trained(self) -> bool:
        """Whether the term has a weight; otherwise it is only logged."""
        return self.weight != 0

    def attempt(self, request: RewardRequest) -> RewardResult:
        """Score B images; an exception becomes failed values, except a `GuardlitError` of a trained term."""
        return self.scorer.attempt(request, str(self.name), strict=self.trained)

    def normalize(self, scores: Tensor) -> Tensor:
        """Raw scores, any shape, on the scale of the sum."""
        if self.affine is not None:
            return (scores - self.affine.shift) / self.affine.scale
        return scores if self.divide == 1 else scores / self.divide

    @property
    def normalizer(self) -> str:
        """The normalizer as a formula, for the provenance."""
        if self.affine is not None:
            return f"(score - {self.affine.shift:g}) / {self.affine.scale:g}"
        return "none" if self.divide == 1 else f"score / {self.divide:g}"
