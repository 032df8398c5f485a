"""An entry of the tables in docs/trainer.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _every(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Entry:
    """What one argument, or one class, means for a run of rounds.

    Attributes:
        meaning: of the values that work; empty where none does.
        refused: why the others are refused and what would be right; empty where there are none.
        allows: whether a value works.
    """

    meaning: str
    refused: str = ""
    allows: Callable[[Any], bool] = _every

    def problem(self, value: Any) -> str | None:
        """Why a value is refused; None where it works."""
        return None if self.allows(value) else self.refused

    def describe(self) -> str:
        """A cell of the table."""
        if not self.refused:
            return self.meaning
        if self.refused.startswith("must"):
            return f"{self.meaning}; {self.refused}"
        return (
            f"{self.meaning}. **Others are refused**: {self.refused}"
            if self.meaning
            else f"**refused**: {self.refused}"
        )


def refuse(reason: str) -> Entry:
    """An entry that refuses every value."""
    return Entry("", reason, lambda value: False)


def only(*values: Any) -> Callable[[Any], bool]:
    """Allows these values alone; a bool is no number."""
    return lambda value: any(type(value) is type(v) and value == v for v in (*values, None))


def none_of(*texts: str) -> Callable[[Any], bool]:
    """Allows a value unless it is one of these texts."""
    return lambda value: str(value) not in texts


def but(*words: str) -> Callable[[Any], bool]:
    """Allows a value unless a word is in its text, or in the name of its class where it is an object."""
    return lambda value: not any(word in text_of(value) for word in words)


def text_of(value: Any) -> str:
    """A value as text: plain ones as they are, others by the names of their classes."""
    if isinstance(value, str | int | float | None):
        return str(value)
    return " ".join(kind.__name__ for kind in type(value).__mro__)


def at_least(least: float) -> Callable[[Any], bool]:
    """Allows numbers from a bound on; what is no number passes."""
    return lambda value: not isinstance(value, int | float) or value >= least
