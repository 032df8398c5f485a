"""What a run trains on: weighted, normalized scores and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from guardlit.advantage import weighted_sum
from guardlit.errors import GuardlitError
from guardlit.rewards.base import Scorer
from guardlit.rewards.term import Term
from guardlit.types import Prompt, RewardRequest, RewardResult


class Reward:
    """The sum over terms of weight x normalized score.

    `Reward.of` makes a reward of one scorer; `Composite` is the reward of several, as YAML writes it. An image is valid
    when every trained term is; the failure of a term that is only logged costs nothing.

    Args:
        name: of the sum, in logs.
        terms: all with different names, at least one with a weight.
        logged: names in the terms' `RewardResult.details` that are columns of the reward, too.

    Attributes:
        terms: by name.
    """

    def __init__(self, name: str, terms: Sequence[Term], logged: Sequence[str] = ()) -> None:
        self.name = name
        self.terms: Mapping[str, Term] = {str(term.name): term for term in terms}
        self._logged = tuple(logged)

    @classmethod
    def of(cls, scorer: Scorer) -> Reward:
        """The reward that a scorer is: one term of weight 1, or the terms of a `Composite`."""
        return scorer if isinstance(scorer, Reward) else Reward(scorer.name, [Term(scorer)], scorer.logged)

    # the sum ------------------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term by name."""
        return {name: term.weight for name, term in self.terms.items()}

    def due(self, round: int) -> Mapping[str, Term]:
        """The terms that are scored in a round."""
        return {name: term for name, term in self.terms.items() if round % term.every == 0}

    def columns(self, round: int) -> tuple[str, ...]:
        """Names of the scores of each image in a round: of the terms that are due, and what these log besides."""
        return (*self.due(round), *self._logged)

    def normalize(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Raw scores by column, on the scale of the sum; columns other than the terms stay as they are."""
        return {name: self.terms[name].normalize(v) if name in self.terms else v for name, v in scores.items()}

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The reward (N,) of raw scores by column, (N,) each; NaN where a trained term failed."""
        return weighted_sum(self.normalize(scores), self.weights)

    def combine(self, results: Mapping[str, RewardResult], features: str | None = None) -> RewardResult:
        """One result of those of the terms that were due, for the same B images.

        Args:
            results: by term.
            features: term whose features are kept; null for none.

        Returns:
            The sum; `details` holds all columns.
        """
        scores = {name: torch.where(r.valid, r.values, torch.nan) for name, r in results.items()}
        total = self.total(scores)
        found = {key: column for result in results.values() for key, column in result.details.items()}
        logged = {key: found.get(key, torch.full_like(total, torch.nan)) for key in self._logged}
        needed = [name for name in results if self.terms[name].trained or name == features]
        rows = {name: (~results[name].valid).nonzero() for name in needed}
        reasons = [(int(failures[0]), results[name].reason) for name, failures in rows.items() if len(failures)]
        reason = min(reasons, default=(0, ""))[1]
        facts = {"details": scores | logged, "provenance": self.provenance, "reason": reason}
        return RewardResult.from_values(total, **facts, features=results[features].features if features else None)

    def check_features(self, name: str) -> None:
        """Raise `GuardlitError` unless the term `name`, of `model.advantage.diversity`, gives features each round."""
        wrong = f"model.advantage.diversity={name}: "
        if (term := self.terms.get(name)) is None:
            raise GuardlitError(f"{wrong}the reward has no term of this name; there are {', '.join(self.terms)}")
        if not term.scorer.embeds_images:
            raise GuardlitError(
                f"{wrong}{type(term.scorer).__name__} gives no features of images; name a term that does, such as a "
                "DINO of weight 0"
            )
        if term.every > 1:
            raise GuardlitError(f"{wrong}this term is scored every {term.every} rounds; set its `every` to 1")

    # the terms' scorers -------------------------------------------------------------------------------------------

    @property
    def provenance(self) -> Mapping[str, str]:
        """Of every term, with its weight and normalizer, as `NAME.key`."""
        found: dict[str, str] = {}
        for name, term in self.terms.items():
            facts = {**term.scorer.provenance, "weight": str(term.weight), "normalizer": term.normalizer}
            found |= {f"{name}.{key}": value for key, value in facts.items()}
        return found

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise `ValueError` when a trained term can never score this prompt."""
        if why := self.refusal(Prompt(prompt, metadata)):
            raise ValueError(why)

    def refusal(self, prompt: Prompt, called: str = "") -> str:
        """Why a trained term can never score a prompt, in one line that names both; empty if nothing is wrong."""
        terms = [(name, term.scorer) for name, term in self.terms.items() if term.trained]
        reasons = (scorer.refusal(prompt, f"{called}{', ' * bool(called)}reward {name!r}") for name, scorer in terms)
        return next(filter(None, reasons), "")

    def weight_bytes(self) -> int | None:
        """Bytes of weights of all terms; None where the size of one is not known."""
        sizes = [term.scorer.weight_bytes() for term in self.terms.values()]
        return sum(size or 0 for size in sizes) if None not in sizes else None

    def setup(self, device: torch.device) -> None:
        """Set up every term."""
        for term in self.terms.values():
            term.scorer.setup(device)

    def close(self) -> None:
        """Close every term, also where one raises."""
        with ExitStack() as stack:
            for term in self.terms.values():
                stack.callback(term.scorer.close)

    def counters(self) -> Mapping[str, float]:
        """Counters of every term, as `NAME/counter`."""
        return {f"{n}/{key}": value for n, t in self.terms.items() for key, value in t.scorer.counters().items()}

    def score(self, request: RewardRequest) -> RewardResult:
        """The reward (B,) of B images; NaN where a trained term failed."""
        return self.combine({name: term.attempt(request) for name, term in self.terms.items()})
