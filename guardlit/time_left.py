"""How long a run will still take, from the rounds and validations that it has finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median


class TimeLeft:
    """The median round times the rounds to come, and the same of validations.

    A run's first round, with all that happens for the first time, counts only as long as there is no other, and then
    without what came before its rollout; so does the first validation. A round that a checkpoint brought back half done
    never counts.

    Args:
        clock: seconds that rise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._validating = clock()
        self._apart = 0.0  # of the round in progress, what is no part of a usual one
        self._rounds: list[float] = []
        self._validations: list[float] = []
        self._half = False

    def begin(self, half: bool) -> None:
        """The run begins, or goes on, with a round that is `half` done."""
        self._begun, self._half = self._clock(), half

    def rollout(self) -> None:
        """The first rollout begins: until now the run got ready."""
        if not self._rounds and not self._half:
            self._apart = self._clock() - self._begun

    def validation(self, begins: bool) -> None:
        """A validation begins or ends."""
        if begins:
            self._validating = self._clock()
            return
        self._validations.append(self._clock() - self._validating)
        self._apart += self._validations[-1]

    def round(self) -> None:
        """A round ends."""
        now = self._clock()
        if not self._half:
            self._rounds.append(now - self._begun - self._apart)
        self._begun, self._apart, self._half = now, 0.0, False

    def seconds(self, rounds: int, validations: int) -> float | None:
        """From now on; None as long as no round is finished.

        Args:
            rounds: to come, the one in progress included.
            validations: to come.
        """
        if not self._rounds:
            return None
        usual = _usual(self._rounds)
        gone = min(self._clock() - self._begun - self._apart, usual) if rounds else 0.0
        return rounds * usual - gone + validations * _usual(self._validations)


def _usual(seconds: list[float]) -> float:
    return median(seconds[1:] or seconds) if seconds else 0.0
