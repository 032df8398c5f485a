"""How long a run will go on."""

from __future__ import annotations

import time
from collections import deque

RECENT = 10
"""Rounds, and validations, whose mean the next ones are taken to need."""


class TimeLeft:
    """Estimates the rest of a run from what it did so far.

    Rounds and validations are timed apart, since a validation comes in some rounds only. The first round also loads
    and warms up: it counts until there is a second one. All times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=RECENT)
        self._validations: deque[float] = deque(maxlen=RECENT)
        self._warm = False
        self._began = self._validation_began = time.monotonic()

    def begin_validation(self) -> None:
        """A validation begins; the round it is in stands still."""
        self._validation_began = time.monotonic()

    def end_validation(self) -> None:
        """It is over."""
        seconds = time.monotonic() - self._validation_began
        self._validations.append(seconds)
        self._began += seconds

    def end_round(self) -> None:
        """A round is over, and the next one begins."""
        now = time.monotonic()
        if len(self._rounds) == 1 and not self._warm:
            self._rounds.clear()
            self._warm = True
        self._rounds.append(now - self._began)
        self._began = now

    def seconds(self, rounds: int, validations: int) -> float | None:
        """Seconds until the end, or None before the first round is over.

        Args:
            rounds: to come, the one in progress among them.
            validations: to come.
        """
        if not self._rounds:
            return None
        a_round = sum(self._rounds) / len(self._rounds)
        a_validation = sum(self._validations) / max(len(self._validations), 1)
        spent = min(time.monotonic() - self._began, a_round)  # on the round in progress
        return max(rounds * a_round + validations * a_validation - spent, 0.0)
