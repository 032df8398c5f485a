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
from guardlit.rewards.reward import Reward
from guardlit.types import RewardRequest, RewardResult

IN_FLIGHT = 8
"""Requests that may wait for the background scorers; the rollout pauses before the next one."""
POLL = 0.2
"""Polling interval while waiting, in seconds: for signals, and for the other ranks."""

RanksReady = Callable[[bool, GuardlitError | None], bool]


class Scoring:
    """Passes the requests of one round to the terms of a reward, and collects their results in order.

    A term whose scorer may run in the `background` has its own thread, which takes one request after another: a scorer
    never gets two requests at once, and its results do not depend on timing. The other terms score at once in the
    caller's thread: on the GPU of the policy they would contend with it, and on a CPU a second thread that computes
    with torch slows down the first.

    Args:
        reward: set up.
        round: index of the round; decides which terms are due.
        all_ready: called about every `POLL` seconds while waiting, and at least once a request, with whether this rank
            is ready and with the error that should end the run; returns whether every rank is ready. May raise.
        features: term whose features are kept; null for none.
    """

    def __init__(self, reward: Reward, round: int, all_ready: RanksReady, features: str | None = None) -> None:
        self._reward, self._all_ready, self._features = reward, all_ready, features
        self._terms = reward.due(round)
        self._workers = {name: _Worker(name) for name, term in self._terms.items() if term.scorer.background}
        self._requests: list[dict[str, Future[RewardResult]]] = []
        self._here = Stopwatch()
        self._waited_for_workers = 0.0

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Cancel the requests that have not started; does not wait for a call in progress."""
        for future in self._futures():
            future.cancel()
        for worker in self._workers.values():
            worker.close()

    @property
    def waited(self) -> float:
        """Seconds that the caller spent on scoring: computing, or waiting for the background."""
        return self._here.seconds + self._waited_for_workers

    @property
    def hidden(self) -> float:
        """Seconds that the busiest background scorer worked while the caller drew images."""
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
        """Score B images; returns when the terms of this thread are done and the background has room for more."""
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
        return [self._reward.combine(result, self._features) for result in results]

    def _ask(self, name: str, request: RewardRequest, arrived: Callable[[], None] = lambda: None) -> RewardResult:
        arrived()
        try:
            result = self._terms[name].attempt(request)
            return result if name == self._features else replace(result, features=None)
        except GuardlitError as error:
            error.args = (f"reward '{name}' failed on images of '{request.prompts[0][:80]}': {error}",)
            raise

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until every rank is ready; every rank asks equally often, since `all_ready` may be collective."""
        begun = time.perf_counter()
        while not self._all_ready(ready(), self._error()):
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

    It is a daemon, unlike the threads of an executor: a call that never returns does not keep the interpreter alive.
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
        # even one copied tensor starts a second team of OpenMP threads, which slows the main thread from then on
        torch.set_num_threads(1)
        while (item := self._calls.get()) is not None:
            future, call = item
            if not future.set_running_or_notify_cancel():
                continue
            begun = time.perf_counter()
            try:
                result = call()
            except BaseException as error:  # any error must reach the thread that waits
                self.busy += time.perf_counter() - begun
                future.set_exception(error)
            else:
                self.busy += time.perf_counter() - begun
                future.set_result(result)


def _at_once(call: Callable[[], RewardResult]) -> Future[RewardResult]:
    """Make a call in this thread; the future holds an error that ends the run until every rank has it."""
    future: Future[RewardResult] = Future()
    try:
        future.set_result(call())
    except GuardlitError as error:
        future.set_exception(error)
    return future


def _to_cpu(images: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """A CPU copy for another thread, and what that thread calls before it reads it; does not wait for the GPU."""
    if not images.is_cuda:
        return images, lambda: None
    copy = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    copy.copy_(images, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(images.device))
    return copy, event.synchronize
