"""The outcome of one image that a server or a subprocess scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """`value`, or else `error`, one line."""

    value: T | None = None
    error: str | None = None


def first_error(outcomes: Sequence[Outcome[T]]) -> str:
    """The error of the first failed image; empty if none failed."""
    return next((outcome.error for outcome in outcomes if outcome.error is not None), "")
