"""Timing of work, on a GPU without host-device synchronization."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Sums the durations of intervals of work; on a GPU by CUDA events, from the work's start to its end there."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._intervals: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Measure the work of the block."""
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
        self._intervals.append(ends)

    @property
    def seconds(self) -> float:
        """Total of all intervals so far; waits for the GPU to finish them."""
        if self._intervals:
            self._intervals[-1][1].synchronize()
        milliseconds = sum(begin.elapsed_time(end) for begin, end in self._intervals)
        self._intervals = []
        self._seconds += milliseconds / 1000
        return self._seconds
