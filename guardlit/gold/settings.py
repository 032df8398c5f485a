"""Settings of `guardlit evaluate`: gold scorers and the Average."""

from __future__ import annotations

from dataclasses import dataclass, field

from guardlit.rewards.base import Scorer
from guardlit.rewards.composite import Composite

AVERAGE = "average"


@dataclass
class Gold:
    """Gold scorers and their Average.

    Attributes:
        scorers: column to scorer, in the table's order.
        average: columns in the Average, the mean over them of score / base (Table 1); all by default. The others are
            only shown.
        lower_is_better: columns such as a distance, which enter the Average as base / score.
        resamples: of the bootstrap over prompts.
    """

    scorers: dict[str, Scorer]
    average: list[str] | None = None
    lower_is_better: list[str] = field(default_factory=list)
    resamples: int = 1000

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("gold.scorers is empty; name at least one gold scorer")
        for column, scorer in self.scorers.items():
            if column == AVERAGE or not column or set(column) & set("/|\n"):
                raise ValueError(f"gold.scorers: {column!r} cannot be a column's name")
            if isinstance(scorer, Composite):
                raise ValueError(f"gold.scorers.{column} is a sum of scorers; give each of them a separate column")
        self.average = list(self.scorers) if self.average is None else self.average
        for option, names in (("average", self.average), ("lower_is_better", self.lower_is_better)):
            if unknown := [name for name in names if name not in self.scorers]:
                known = ", ".join(self.scorers)
                raise ValueError(f"gold.{option}: there is no scorer {unknown[0]!r}; there are {known}")
        if not self.average:
            raise ValueError("gold.average is empty; name the columns that it is the mean of, or leave it out for all")
        if self.resamples < 1:
            raise ValueError(f"gold.resamples={self.resamples} must be at least 1")
