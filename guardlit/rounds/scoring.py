"""Scores the images of a round while the next ones are drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import TracebackType

import torch
from torch import Tensor

from guardlit.devices.stopwatch import Stopwatch
from guardlit.errors import GuardlitError
from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult

IN_FLIGHT = 8
"""Requests that may wait for the background scorers; before a further one the rollout pauses."""
POLL = 0.2
"""Seconds after which whoever waits looks up: for a signal, and for what the other processes say."""

Together = Callable[[bool, GuardlitError | None], bool]


class Scoring:
    """Gives one round's requests to a scorer's terms and collects what they say, in the order of the requests.

    A term that may run in the `background` gets a thread of its own, which takes one request after another, so that a
    scorer is never asked twice at once and what it says does not depend on timing. The others score at once, in the
    caller's thread: on the policy's own GPU they would only contend with it, and on a CPU a second thread that computes
    with torch slows down the first.

    Args:
        scorer: ready to score.
        round: index of the round; decides which terms are due.
        together: called about every `POLL` seconds while waiting, and at least once a request, with whether this
            process has what it waits for and with the error that should end the run; returns whether all processes
            have it. May raise.
    """

    def __init__(self, scorer: Scorer, round: int, together: Together) -> None:
        self._scorer, self._together = scorer, together
        self._terms = scorer.terms(round)
        self._workers = {name: _Worker(name) for name, term in self._terms.items() if term.background}
        self._requests: list[dict[str, Future[RewardResult]]] = []
        self._here = Stopwatch()
        self._waited_for_workers = 0.0

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Drop what has not begun; a call in progress ends by itself, and nobody waits for it."""
        for future in self._futures():
            future.cancel()
        for worker in self._workers.values():
            worker.close()

    @property
    def waited(self) -> float:
        """Seconds that the caller spent on scoring: computing here, or waiting for what is computed elsewhere."""
        return self._here.seconds + self._waited_for_workers

    @property
    def hidden(self) -> float:
        """Seconds that the busiest background scorer worked beside the drawing, and that nobody waited for."""
        busy = max((worker.busy for worker in self._workers.values()), default=0.0)
        return max(busy - self._waited_for_workers, 0.0)

    @property
    def done(self) -> int:
        """Requests that are scored."""
        return len(self._requests) - self._in_flight

    @property
    def _in_flight(self) -> int:
        return sum(not all(f.done() for f in request.values()) for request in self._requests)

    def submit(self, request: RewardRequest) -> None:
        """Have B images scored; returns when the terms of this thread are done and the others have room for more."""
        self._wait_until(lambda: self._in_flight < IN_FLIGHT)
        asked: dict[str, Future[RewardResult]] = {}
        if self._workers:
            images, arrived = _to_cpu(request.images)
            here = replace(request, images=images)
            asked = {name: w.submit(partial(self._ask, name, here, arrived)) for name, w in self._workers.items()}
        if len(self._workers) < len(self._terms):
            with self._here.running(request.images.device):
                for name in self._terms.keys() - self._workers.keys():
                    asked[name] = _at_once(partial(self._ask, name, request))
        self._requests.append(asked)

    def gather(self) -> list[RewardResult]:
        """Results of all requests, in their order; waits for those in flight."""
        self._wait_until(lambda: self._in_flight == 0)
        results = [{name: request[name].result() for name in self._terms} for request in self._requests]
        return [self._scorer.combine(result) for result in results]

    def _ask(self, name: str, request: RewardRequest, arrived: Callable[[], None] = lambda: None) -> RewardResult:
        arrived()
        try:
            return self._terms[name].attempt(request, name, vital=self._scorer.weights.get(name, 1.0) != 0)
        except GuardlitError as error:
            error.args = (f"reward '{name}' failed on images of '{request.prompts[0][:80]}': {error}",)
            raise

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Every process takes as many turns: what happens in `together` may be a collective."""
        begun = time.perf_counter()
        while not self._together(ready(), self._error()):
            if not ready():
                wait([f for f in self._futures() if not f.done()], POLL, FIRST_COMPLETED)
        self._waited_for_workers += time.perf_counter() - begun

    def _futures(self) -> list[Future[RewardResult]]:
        return [future for request in self._requests for future in request.values()]

    def _error(self) -> GuardlitError | None:
        errors = (future.exception() for future in self._futures() if future.done())
        return next((error for error in errors if isinstance(error, GuardlitError)), None)


class _Worker:
    """A thread that makes one call after another.

    A daemon, unlike the threads of an executor: a call that does not end never keeps the interpreter from ending.
    """

    def __init__(self, name: str) -> None:
        self.busy = 0.0
        self._calls: SimpleQueue[tuple[Future[RewardResult], Callable[[], RewardResult]] | None] = SimpleQueue()
        Thread(target=self._run, name=f"reward {name}", daemon=True).start()

    def submit(self, call: Callable[[], RewardResult]) -> Future[RewardResult]:
        future: Future[RewardResult] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        # a second team of OpenMP threads, for as little as one copied tensor, slows the main thread's for good
        torch.set_num_threads(1)
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            begun = time.perf_counter()
            try:
                result = call()
            except BaseException as error:  # whatever it is, it must reach the thread that waits
                self.busy += time.perf_counter() - begun
                future.set_exception(error)
            else:
                self.busy += time.perf_counter() - begun
                future.set_result(result)


def _at_once(call: Callable[[], RewardResult]) -> Future[RewardResult]:
    """A call made here, as a future; an error that ends the run waits in it until all processes know."""
    future: Future[RewardResult] = Future()
    try:
        future.set_result(call())
    except GuardlitError as error:
        future.set_exception(error)
    return future


def _to_cpu(images: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Images for another thread, on the CPU, and what that thread calls before it reads them; waits for no GPU."""
    if not images.is_cuda:
        return images, lambda: None
    copy = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    copy.copy_(images, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(images.device))
    return copy, event.synchronize
