"""Several scorers as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult


@dataclass
class Term:
    """One scorer of a composite.

    Attributes:
        scorer: what scores.
        weight: factor in the sum; 0 scores and logs the term, but does not train on it.
        name: name of the term in logs and `RewardResult.details`; the scorer's own if left out.
        divide: the raw score is divided by this, e.g. 26 for PickScore, to bring terms to one scale.
    """

    scorer: Scorer
    weight: float = 1.0
    name: str | None = None
    divide: float = 1.0

    def __post_init__(self) -> None:
        self.name = self.name or self.scorer.name
        if not math.isfinite(self.weight):
            raise ValueError(f"weight of the reward term {self.name!r} is {self.weight}; it must be a finite number")
        if not math.isfinite(self.divide) or self.divide == 0:
            raise ValueError(f"divide of the reward term {self.name!r} is {self.divide}; it must be finite and not 0")


class Composite(Scorer):
    """Weighted sum of scorers: sum over terms of weight x score / divide.

    A sample is valid when every term with a weight is; the failure of a term that is only logged costs nothing.
    `RewardResult.details` holds score / divide of every term.

    Args:
        terms: at least one with a weight other than 0, all with different names.

    Raises:
        ValueError: no weighted term, or a name that stands twice.
    """

    def __init__(self, terms: list[Term]) -> None:
        self._terms = {str(term.name): term for term in terms}
        if len(self._terms) < len(terms):
            names = ", ".join(str(term.name) for term in terms)
            raise ValueError(f"reward terms need different names, got {names}; set `name` in the terms")
        if not any(self.weights.values()):
            raise ValueError("a composite reward needs at least one term with a weight other than 0")

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term by name."""
        return {name: term.weight for name, term in self._terms.items()}

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

    def score(self, request: RewardRequest) -> RewardResult:
        """Weighted sum (B,); NaN where a weighted term failed."""
        total = torch.zeros(len(request))
        details: dict[str, Tensor] = {}
        provenance: dict[str, str] = {}
        for name, term in self._terms.items():
            result = term.scorer.score(request)
            details[name] = torch.where(result.valid, result.values, torch.nan) / term.divide
            if term.weight:  # 0 x NaN would be NaN
                total = total + term.weight * details[name]
            provenance |= {f"{name}.{key}": value for key, value in result.provenance.items()}
            provenance |= {f"{name}.weight": str(term.weight), f"{name}.divide": str(term.divide)}
        return RewardResult.from_values(total, details=details, provenance=provenance)
