"""HTTP client of a reward server: concurrent calls, retries, time-outs, a circuit breaker.

The client runs an event loop in a private thread and is called from synchronous code:

    with Client("http://127.0.0.1:8000", Limits(concurrency=8), token_env="REWARD_TOKEN") as client:
        about = client.ask(Call("GET", "/info", json.loads))                  # one call: its value, or GuardlitError
        outcomes = client.map([Call("POST", "/v1/score", read, body)] * 96)   # 96 outcomes, in order
        client.counters()                                                     # since the last call of counters
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

from guardlit.errors import GuardlitError
from guardlit.rewards.outcome import Outcome as Outcome
from guardlit.rewards.remote.retries import (
    CircuitBreaker,
    Counts,
    RefusedError,
    ReplyError,
    RetryPolicy,
    UnreachedError,
    UnreadableError,
    bearer_token,
    checked_url,
    describe,
)

T = TypeVar("T")

MOST_BYTES = 64_000_000
"""Limit of a reply, decompressed: many times what the scores of any request take."""

logging.getLogger("stamina").addHandler(logging.NullHandler())  # else every retry prints its bare event name


@dataclass(frozen=True)
class Limits:
    """Time-outs, retries and concurrency of the calls to a server.

    Attributes:
        connect: time-out of a connection attempt, in seconds.
        read: time-out without a byte of the reply, in seconds.
        attempts: of one call, the first included.
        total: time-out of one call with all its attempts and the delays between them, in seconds.
        concurrency: calls in flight at once.
    """

    connect: float = 5.0
    read: float = 120.0
    attempts: int = 5
    total: float = 600.0
    concurrency: int = 32

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} of a reward server's limits is {getattr(self, name)}; it must be seconds > 0")
        for name in ("attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of a reward server's limits is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its reply is read.

    Attributes:
        method: `GET` or `POST`.
        path: below the server's address.
        read: parses the body of a reply. Any exception makes the reply unreadable; such a call is retried at most
            twice. Runs in the client's thread, so it must be quick.
        body: encodes the body of the request. Runs in a worker thread when the call starts, so that the images of a
            round are not all encoded at once.
        content_type: of the request's body.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    body: Callable[[], bytes] | None = None
    content_type: str = "application/json"


class Client:
    """Client of one reward server.

    Retries transport errors, HTTP 408, 409, 425, 429 and 5xx (after `Retry-After`, if the server sends it) and, at most
    twice, replies that `Call.read` cannot read; not the other 4xx. When the server stops answering, the circuit breaker
    opens: calls that have not started fail at once, so that `map` takes little more than `total` seconds.

    Thread-safe; all threads share `concurrency`. Proxies named in the environment are used, except for loopback
    addresses.

    Args:
        base_url: http or https address, with a path if the server lives below one.
        limits: time-outs, attempts, concurrency.
        token_env: name of the environment variable that holds a bearer token; the token itself is never logged.

    Raises:
        GuardlitError: an invalid address, or no such environment variable.
    """

    def __init__(self, base_url: str, limits: Limits = Limits(), token_env: str | None = None) -> None:
        import httpx2
        from anyio.from_thread import start_blocking_portal

        self.url, loopback = checked_url(base_url)
        self.limits = limits
        self._counts = Counts()
        self._running: set[Future[Any]] = set()
        self._jitter = random.Random()  # scoring must not touch the global random state
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._no_reply = httpx2.RequestError
        http = httpx2.AsyncClient(
            base_url=self.url,
            headers={} if token_env is None else {"authorization": f"Bearer {bearer_token(token_env)}"},
            timeout=httpx2.Timeout(limits.read, connect=limits.connect, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=limits.concurrency),
            trust_env=not loopback,
        )
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal(name="reward-client"))
            self._http = stack.enter_context(self._portal.wrap_async_context_manager(http))
            self._stack = stack.pop_all()
        atexit.register(self.close)  # before the interpreter tears down the event loop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and stop the thread; a `map` in another thread fails. The client cannot be reopened."""
        for future in list(self._running):
            future.cancel()
        self._stack.close()
        atexit.unregister(self.close)

    def map(self, calls: Sequence[Call[T]]) -> list[Outcome[T]]:
        """Make all calls, `concurrency` at once; outcomes are in the order of the calls, and no failure raises."""
        return self._wait_for(calls, self.limits.total)

    def _wait_for(self, calls: Sequence[Call[T]], seconds: float) -> list[Outcome[T]]:
        future = self._portal.start_task_soon(self._map, calls, seconds)
        self._running.add(future)
        try:
            return future.result()
        except BaseException:  # such as ctrl-C
            future.cancel()
            raise
        finally:
            self._running.discard(future)

    def ask(self, call: Call[T], seconds: float | None = None) -> T:
        """Make one call, with all its attempts within `seconds`; raises `GuardlitError` where `map` gives an error."""
        (outcome,) = self._wait_for([call], seconds or self.limits.total)
        if outcome.error is not None:
            raise GuardlitError(f"{self.url}: {outcome.error}")
        return outcome.value  # type: ignore[return-value]  # it may be None, if that is what `read` made

    def counters(self) -> Mapping[str, float]:
        """Calls, failures, retries, unparseable_share, latency_p50 and latency_p95 since the last call.

        The last three are over replies, and left out where there was none; latencies are in seconds.
        """
        return self._portal.call(self._take_counts).summary()  # in the event loop's thread, so that no count is lost

    async def _take_counts(self) -> Counts:
        counts, self._counts = self._counts, Counts()
        return counts

    async def _map(self, calls: Sequence[Call[T]], seconds: float) -> list[Outcome[T]]:
        outcomes: list[Outcome[T]] = [Outcome()] * len(calls)
        breaker = CircuitBreaker(self.limits.concurrency)

        async def make(index: int) -> None:
            async with self._slots:
                outcomes[index] = await self._make(calls[index], seconds, breaker)
            self._counts.calls += 1
            self._counts.failures += outcomes[index].error is not None

        async with asyncio.TaskGroup() as group:
            for index in range(len(calls)):
                group.create_task(make(index))
        return outcomes

    async def _make(self, call: Call[T], seconds: float, breaker: CircuitBreaker) -> Outcome[T]:
        if breaker.open:
            return Outcome(error=f"{call.method} {call.path}: not sent, as the server stopped answering")
        try:
            async with asyncio.timeout(seconds):
                value = await self._retried(call, time.monotonic() + seconds)
        except TimeoutError:
            breaker.note(alive=False)
            return Outcome(error=f"{call.method} {call.path}: no answer within {seconds:g} s")
        except ReplyError as failure:
            breaker.note(alive=failure.alive)
            return Outcome(error=f"{call.method} {call.path}: {failure}")
        breaker.note(alive=True)
        return Outcome(value)

    async def _retried(self, call: Call[T], deadline: float) -> T:
        """The value of a call, after at most `attempts` attempts."""
        body = None if call.body is None else await asyncio.to_thread(call.body)
        policy = RetryPolicy(self.limits.attempts, deadline, self._jitter)
        async for attempt in policy.attempts():
            self._counts.retries += attempt.num > 1
            with attempt:
                return await self._attempt(call, body)
        raise AssertionError("stamina ends with a value or an error")

    async def _attempt(self, call: Call[T], body: bytes | None) -> T:
        headers = {} if body is None else {"content-type": call.content_type}
        start = time.monotonic()
        content = bytearray()
        try:
            async with self._http.stream(call.method, call.path, content=body, headers=headers) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > MOST_BYTES:
                        break
        except self._no_reply as error:
            raise UnreachedError(describe(error)) from error
        if not response.is_success:
            raise RefusedError(response, content[:1000].decode(errors="replace"))
        self._counts.seconds.append(time.monotonic() - start)
        try:
            if len(content) > MOST_BYTES:
                raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
            return call.read(bytes(content))
        except Exception as error:  # the reply may hold anything, and `read` may raise anything
            self._counts.unreadable += 1
            raise UnreadableError(f"unreadable reply ({describe(error)})") from error
