"""How long work takes, on a GPU without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up stretches of work; those on a GPU by its own clock, from when it comes to them to when it is done."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._stretches: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Measure what is done inside."""
        if device.type != "cuda":
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun
            return
        ends = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(device)
        ends[0].record(stream)
        yield
        ends[1].record(stream)
        self._stretches.append(ends)

    @property
    def seconds(self) -> float:
        """Of all stretches so far; waits until they are done."""
        if self._stretches:
            self._stretches[-1][1].synchronize()
        milliseconds = sum(begin.elapsed_time(end) for begin, end in self._stretches)
        self._stretches = []
        self._seconds += milliseconds / 1000
        return self._seconds
