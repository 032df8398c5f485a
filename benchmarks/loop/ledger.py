"""Accounts for time: every moment of a run belongs to one name, the innermost open one."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

BARE, HARNESS = "bare", "harness"
NOT_THE_RUNS = (BARE, HARNESS)
"""What the benchmark adds to the run."""
OTHER_THREADS = "other threads"


class Clocks(NamedTuple):
    """CPU seconds and seconds."""

    cpu: float
    wall: float

    def __add__(self, other: Any) -> Clocks:  # type: ignore[override]
        return Clocks(self.cpu + other[0], self.wall + other[1])

    def __sub__(self, other: Clocks) -> Clocks:
        return Clocks(self.cpu - other.cpu, self.wall - other.wall)


ZERO = Clocks(0.0, 0.0)


class Ledger:
    """Charges seconds to names, by phase.

    With one torch thread a name is charged the CPU seconds of the main thread. The work of other threads, such as noise
    drawn ahead or a logger's writing, is charged to `OTHER_THREADS`: it belongs to the run, even during a bare call.
    With several torch threads the two cannot be separated, and a name is charged both.

    Args:
        one_thread: whether torch computes only in the main thread.
    """

    def __init__(self, one_thread: bool) -> None:
        self.phase = "start"
        self.spent: dict[tuple[str, str], Clocks] = defaultdict(lambda: ZERO)
        self._one_thread = one_thread
        self._open = ["rest"]
        self._since = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        return time.thread_time(), time.process_time(), time.perf_counter()

    def charge(self) -> None:
        """Charge the elapsed time to the innermost name."""
        now = self._now()
        mine, process, wall = (after - before for before, after in zip(self._since, now, strict=True))
        self._since = now
        self.spent[self.phase, self._open[-1]] += Clocks(mine if self._one_thread else process, wall)
        if self._one_thread:
            self.spent[self.phase, OTHER_THREADS] += Clocks(max(process - mine, 0.0), 0.0)

    @contextmanager
    def spend(self, name: str) -> Iterator[None]:
        """Charge this context to `name`, without the inner contexts of other names."""
        self.charge()
        self._open.append(name)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def enter(self, phase: str) -> str:
        """Switch to `phase`; returns the previous one."""
        self.charge()
        before, self.phase = self.phase, phase
        return before

    def of_run(self, phase: str) -> Clocks:
        """The phase so far, without what the benchmark adds."""
        self.charge()
        return sum((c for (p, name), c in self.spent.items() if p == phase and name not in NOT_THE_RUNS), ZERO)

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Charge every call of `owner`'s method to `name`."""
        call: Callable[..., Any] = getattr(owner, method)

        @wraps(call)
        def charged(*args: Any, **kwargs: Any) -> Any:
            with self.spend(name):
                return call(*args, **kwargs)

        setattr(owner, method, charged)
