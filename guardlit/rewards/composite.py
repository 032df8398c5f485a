"""Several scorers as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult


@dataclass(frozen=True)
class Affine:
    """The normalizer (score - shift) / scale.

    Attributes:
        shift: the score that becomes 0.
        scale: how much of the score makes 1.
    """

    shift: float
    scale: float


@dataclass
class Term:
    """One scorer of a composite.

    The raw score is logged, and brought to the scale of the other terms before it is weighted: by `divide`, by
    `affine`, or, if neither is given, not at all.

    Attributes:
        scorer: what scores.
        weight: factor in the sum; 0 scores and logs the term, but does not train on it.
        name: name of the term in logs and `RewardResult.details`; the scorer's own if left out.
        divide: normalizer score / divide, e.g. 26 for PickScore.
        affine: normalizer (score - shift) / scale, e.g. shift 18 and scale 8 for PickScore.
        every: a term of weight 0 is scored in every so many rounds only, counted from the first round of the run.
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
        if self.every < 1 or (self.every > 1 and self.weight):
            raise ValueError(
                f"every {what} {self.every} with weight {self.weight:g}; it must be at least 1, "
                "and only a term of weight 0 can leave rounds out"
            )

    def normalize(self, scores: Tensor) -> Tensor:
        """Raw scores, any shape, on the scale of the sum."""
        if self.affine is not None:
            return (scores - self.affine.shift) / self.affine.scale
        return scores if self.divide == 1 else scores / self.divide

    @property
    def normalizer(self) -> str:
        """In words, for a provenance."""
        if self.affine is not None:
            return f"(score - {self.affine.shift:g}) / {self.affine.scale:g}"
        return "none" if self.divide == 1 else f"score / {self.divide:g}"


class Composite(Scorer):
    """Weighted sum of scorers: sum over terms of weight x normalized score.

    A sample is valid when every term with a weight is; the failure of a term that is only logged costs nothing.
    `RewardResult.details` holds every term's raw score.

    Args:
        terms: at least one with a weight other than 0, all with different names.

    Raises:
        ValueError: no weighted term, or a name that stands twice.
    """

    def __init__(self, terms: list[Term]) -> None:
        self._terms = {str(term.name): term for term in terms}
        names = [str(term.name) for term in terms]
        if len({*names, self.name}) <= len(names):
            raise ValueError(
                f"reward terms need different names, got {', '.join(names)}; set `name` in the terms, "
                f"to something else than '{self.name}'"
            )
        if not any(self.weights.values()):
            raise ValueError("a composite reward needs at least one term with a weight other than 0")

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term by name."""
        return {name: term.weight for name, term in self._terms.items()}

    @property
    def provenance(self) -> Mapping[str, str]:
        """Of every term, with its weight and normalizer, as `NAME.key`."""
        found: dict[str, str] = {}
        for name, term in self._terms.items():
            facts = {**term.scorer.provenance, "weight": str(term.weight), "normalizer": term.normalizer}
            found |= {f"{name}.{key}": value for key, value in facts.items()}
        return found

    def terms(self, round: int | None = None) -> Mapping[str, Scorer]:
        """The scorers that are due in a round."""
        return {n: t.scorer for n, t in self._terms.items() if round is None or round % t.every == 0}

    def columns(self, round: int) -> tuple[str, ...]:
        """The terms that are due in a round."""
        return tuple(self.terms(round))

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Ask every term that is trained on."""
        for term in self._terms.values():
            if term.weight:
                term.scorer.check_prompt(prompt, metadata)

    def weight_bytes(self) -> int | None:
        """Of all terms; None where one does not know."""
        sizes = [term.scorer.weight_bytes() for term in self._terms.values()]
        return sum(size or 0 for size in sizes) if None not in sizes else None

    def setup(self, device: torch.device) -> None:
        """Set up every term."""
        for term in self._terms.values():
            term.scorer.setup(device)

    def close(self) -> None:
        """Close every term."""
        for term in self._terms.values():
            term.scorer.close()

    def counters(self) -> Mapping[str, float]:
        """Of every term, as `NAME/counter`."""
        return {f"{n}/{key}": value for n, t in self._terms.items() for key, value in t.scorer.counters().items()}

    def score(self, request: RewardRequest) -> RewardResult:
        """Weighted sum (B,) of all terms; NaN where a weighted one failed."""
        return self.combine({n: t.scorer.attempt(request, n, t.weight != 0) for n, t in self._terms.items()})

    def combine(self, results: Mapping[str, RewardResult]) -> RewardResult:
        """Weighted sum (B,) of the terms that were due; NaN where a weighted one failed."""
        details = {name: torch.where(r.valid, r.values, torch.nan) for name, r in results.items()}
        weighted = {name: scores for name, scores in self.normalize(details).items() if self.weights[name]}
        # 0 x NaN would be NaN, so what is only logged stays out of the sum
        total = torch.stack([self.weights[name] * scores for name, scores in weighted.items()]).sum(0)
        failed = {name: (~results[name].valid).nonzero() for name in weighted}
        reasons = [(int(rows[0]), results[name].reason) for name, rows in failed.items() if len(rows)]
        reason = min(reasons, default=(0, ""))[1]
        return RewardResult.from_values(total, details=details, provenance=self.provenance, reason=reason)

    def normalize(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Each term's scores by its normalizer."""
        return {name: self._terms[name].normalize(values) for name, values in scores.items()}
