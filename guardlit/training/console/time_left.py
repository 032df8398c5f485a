"""Estimates a run's remaining time."""

from __future__ import annotations

import time
from collections import deque

RECENT = 10
"""Rounds, and validations, whose mean duration predicts the next ones."""


class TimeLeft:
    """Estimates a run's remaining time from its rounds and validations so far.

    They are timed separately, since only some rounds have a validation. The first of each includes loading and warm-up:
    it counts until there is a second one, and of the first round only the time after the prompts were encoded. A round
    that was resumed in its middle does not count. All times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._rounds: deque[float] = deque(maxlen=RECENT)
        self._validations: deque[float] = deque(maxlen=RECENT)
        self._warm = self._evaluated = self._half = False
        self._began = self._validation_began = time.monotonic()

    def begin(self, half: bool) -> None:
        """Start the clock of a run, which may resume within a round (`half`)."""
        self._began, self._half = time.monotonic(), half

    def begin_rollout(self) -> None:
        """Start a rollout; in the first round, what came before was set-up."""
        if not self._rounds and not self._half:
            self._began = time.monotonic()

    def begin_validation(self) -> None:
        """Start a validation, which pauses the clock of its round."""
        self._validation_began = time.monotonic()

    def end_validation(self) -> None:
        """End the validation."""
        seconds = time.monotonic() - self._validation_began
        if len(self._validations) == 1 and not self._evaluated:
            self._validations.clear()
            self._evaluated = True
        self._validations.append(seconds)
        self._began += seconds

    def end_round(self) -> None:
        """End the round and start the next one."""
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


def in_words(seconds: float) -> str:
    """A duration in its two largest units: `42 s`, `7 min 05 s`, `3 h 20 min`, `2 d 5 h`."""
    whole = round(max(seconds, 0))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
