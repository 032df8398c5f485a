"""The reward of several scorers, as YAML writes it."""

from __future__ import annotations

from guardlit.rewards.base import Scorer
from guardlit.rewards.reward import Reward
from guardlit.rewards.term import Term


class Composite(Reward, Scorer):
    """Weighted sum of scorers: sum over terms of weight x normalized score.

    It is a `Scorer` too, so that `guardlit serve-reward` can serve the sum. A sample is valid when every term with a
    weight is; the failure of a term that is only logged costs nothing. `RewardResult.details` holds every term's raw
    score.

    Args:
        terms: at least one with a weight other than 0, all with different names.

    Raises:
        ValueError: no weighted term, or a name that occurs twice.
    """

    def __init__(self, terms: list[Term]) -> None:
        super().__init__(self.name, terms)
        names = [str(term.name) for term in terms]
        if len({*names, self.name}) <= len(names):
            raise ValueError(
                f"reward terms need different names, got {', '.join(names)}; set `name` in the terms, "
                f"to something else than '{self.name}'"
            )
        if not any(term.trained for term in terms):
            raise ValueError("a composite reward needs at least one term with a weight other than 0")
