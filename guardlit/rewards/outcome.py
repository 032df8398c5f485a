"""What becomes of one sample that somebody else scores: a server, or a process of our own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """`value`, or else `error`, one line."""

    value: T | None = None
    error: str | None = None


def report_failures(scorer: str, outcomes: Sequence[Outcome[T]]) -> None:
    """Log one line that says how many samples failed, and why the first of them did."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        _log.warning("%s: %d of %d samples failed; the first: %s", scorer, len(errors), len(outcomes), errors[0])
