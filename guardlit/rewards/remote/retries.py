"""Retries and time-outs of a reward client: errors, retry policy, circuit breaker, counters, addresses, tokens."""

from __future__ import annotations

import ipaddress
import os
import random
import time
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import numpy as np

from guardlit.errors import GuardlitError

if TYPE_CHECKING:
    from httpx2 import Response
    from stamina import Attempt

_RETRIED = {408, 409, 425, 429}  # and everything from 500 up
_REREADS = 2  # at temperature 0 a model mostly repeats its answer


class ReplyError(Exception):
    """A failed attempt; the message is one line.

    Attributes:
        alive: whether the server works, so that another call may succeed.
        retryable: whether a retry of this call may succeed.
        retry_after: seconds that the server asks to wait before it.
    """

    alive = True
    retryable = True
    retry_after = 0.0


class RefusedError(ReplyError):
    """A status other than 2xx, with the start of its body."""

    def __init__(self, response: Response, said: str = "") -> None:
        super().__init__(f"HTTP {response.status_code}: {shorten(said) or response.reason_phrase}")
        self.retryable = response.status_code in _RETRIED or response.status_code >= 500
        self.alive = not self.retryable
        self.retry_after = _retry_after(response.headers.get("retry-after", ""))


class UnreadableError(ReplyError):
    """A reply that `Call.read` cannot read."""


class UnreachedError(ReplyError):
    """No complete reply: no connection, a broken one, or a read time-out."""

    alive = False


@dataclass
class Counts:
    """Counters of a client, and the latency of each reply, readable or not, in seconds."""

    calls: int = 0
    failures: int = 0
    retries: int = 0
    unreadable: int = 0
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """See `Client.counters`."""
        counts = {"calls": float(self.calls), "failures": float(self.failures), "retries": float(self.retries)}
        if not self.seconds:
            return counts
        p50, p95 = np.percentile(self.seconds, [50, 95])
        share = self.unreadable / len(self.seconds)
        return {**counts, "unparseable_share": share, "latency_p50": float(p50), "latency_p95": float(p95)}


class CircuitBreaker:
    """Opens when a server stops answering: once as many calls in a row as may be in flight failed for good.

    Args:
        concurrency: calls that may be in flight at once.
    """

    def __init__(self, concurrency: int) -> None:
        self.open = False
        """Whether no further call is sent."""
        self._limit = max(3, concurrency)
        self._missed = 0

    def note(self, *, alive: bool) -> None:
        """Count the outcome of a call: whether the server still answers."""
        self._missed = 0 if alive else self._missed + 1
        self.open = self.open or self._missed >= self._limit


class RetryPolicy:
    """When a failed call is retried: exponential backoff with jitter, or after the server's `Retry-After`.

    Args:
        attempts: at most, the first included.
        deadline: time-out of the call, on the clock of `time.monotonic`.
        jitter: random generator; scoring must leave the global random state alone.
    """

    def __init__(self, attempts: int, deadline: float, jitter: random.Random) -> None:
        self._attempts, self._deadline, self._jitter = attempts, deadline, jitter
        self._failed = self._unread = 0

    def attempts(self) -> AsyncIterable[Attempt]:
        """Contexts, one per attempt, each of which swallows an error that is retried."""
        import stamina

        return stamina.retry_context(self.delay, attempts=self._attempts, timeout=None)

    def delay(self, error: Exception) -> float | bool:
        """Seconds until the next attempt; False where a retry cannot help or would miss the deadline."""
        self._failed += 1
        self._unread += isinstance(error, UnreadableError)
        if not isinstance(error, ReplyError) or not error.retryable or self._unread > _REREADS:
            return False
        seconds = max(error.retry_after, min(0.25 * 2 ** (self._failed - 1), 10) * self._jitter.uniform(0.5, 1))
        return seconds if time.monotonic() + seconds < self._deadline else False


def checked_url(text: str) -> tuple[str, bool]:
    """A server's address without the trailing slash, and whether it is a loopback address.

    Raises:
        GuardlitError: not an http or https address, or one that holds a password.
    """
    from httpx2 import URL, InvalidURL

    try:
        url = URL(text)
    except InvalidURL:
        url = URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise GuardlitError(f"{text!r} is no address of a reward server; write http://host:port")
    if url.userinfo:
        raise GuardlitError(f"the address of {url.host} holds a password; name a variable by `token_env` instead")
    try:
        loopback = ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        loopback = url.host == "localhost"
    return text.rstrip("/"), loopback


def bearer_token(variable: str) -> str:
    """The token in an environment variable; raises `GuardlitError` if there is none."""
    token = os.environ.get(variable, "").strip()
    if not token or not (token.isascii() and token.isprintable()):
        found = "holds something else than plain text" if token else "is not set"
        raise GuardlitError(f"the environment variable {variable}, named by `token_env`, {found}; put the token there")
    return token


def describe(error: Exception) -> str:
    """An exception in one line, with its class unless it is a `ReplyError`."""
    text = shorten(str(error))
    return text if isinstance(error, ReplyError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def shorten(text: str, length: int = 200) -> str:
    """At most `length` characters on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


def _retry_after(header: str) -> float:
    """Seconds that a `Retry-After` header asks to wait, given as seconds or as a date; 0 if it cannot be read."""
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
