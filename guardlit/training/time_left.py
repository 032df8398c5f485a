"""How long a run will go on."""

from __future__ import annotations

import time
from collections import deque

RECENT = 10
"""Rounds, and validations, whose mean the next ones are taken to need."""


class TimeLeft:
    """Estimates the rest of a run from what it did so far.

    Rounds and validations are timed apart, since a validation comes in some rounds only. The first of either also loads
    and warms up: it counts until there is a second one, and of the round only what came after the prompts were encoded.
    A round that a checkpoint brought back half done does not count. All times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=RECENT)
        self._validations: deque[float] = deque(maxlen=RECENT)
        self._warm = self._evaluated = self._half = False
        self._began = self._validation_began = time.monotonic()

    def begin(self, half: bool) -> None:
        """The run begins, or goes on with a round that is `half` done."""
        self._began, self._half = time.monotonic(), half

    def begin_rollout(self) -> None:
        """A rollout begins: in the first round, all that came before made the run ready."""
        if not self._rounds and not self._half:
            self._began = time.monotonic()

    def begin_validation(self) -> None:
        """A validation begins; the round it is in stands still."""
        self._validation_began = time.monotonic()

    def end_validation(self) -> None:
        """It is over."""
        seconds = time.monotonic() - self._validation_began
        if len(self._validations) == 1 and not self._evaluated:
            self._validations.clear()
            self._evaluated = True
        self._validations.append(seconds)
        self._began += seconds

    def end_round(self) -> None:
        """A round is over, and the next one begins."""
        now = time.monotonic()
        if len(self._rounds) == 1 and not self._warm:
            self._rounds.clear()
            self._warm = True
        if not self._half:
            self._rounds.append(now - self._began)
        self._began, self._half = now, False

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
