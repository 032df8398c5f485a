"""Retry policy and circuit breaker, without a server."""

from __future__ import annotations

import random
import time

import pytest

from guardlit.rewards.remote.retries import CircuitBreaker, RefusedError, RetryPolicy, UnreachedError, UnreadableError


def refused(status: int, **headers: str) -> RefusedError:
    from httpx2 import Response

    return RefusedError(Response(status, headers=headers))


def policy(seconds: float = 3600) -> RetryPolicy:
    return RetryPolicy(5, time.monotonic() + seconds, random.Random(0))


def test_the_delay_doubles_up_to_ten_seconds():
    waiting = policy()
    delays = [waiting.delay(UnreachedError("no connection")) for _ in range(8)]
    for delay, longest in zip(delays, (0.25, 0.5, 1, 2, 4, 8, 10, 10), strict=True):
        assert longest / 2 <= delay <= longest
    assert len({delay / longest for delay, longest in zip(delays, (0.25, 0.5, 1, 2, 4, 8, 10, 10), strict=True)}) > 1


def test_the_server_may_ask_for_a_longer_delay():
    assert policy().delay(refused(429, **{"retry-after": "30"})) == 30
    assert policy(seconds=20).delay(refused(429, **{"retry-after": "30"})) is False


@pytest.mark.parametrize(("status", "retried"), [(408, True), (429, True), (503, True), (400, False), (401, False)])
def test_a_status_is_retried_if_it_can_change(status: int, retried: bool):
    assert (policy().delay(refused(status)) is not False) == retried


def test_an_unreadable_reply_is_retried_twice():
    waiting = policy()
    assert [waiting.delay(UnreadableError("not json")) is not False for _ in range(3)] == [True, True, False]


def test_an_unknown_error_is_not_retried():
    assert policy().delay(KeyError("a bug")) is False


def test_the_breaker_opens_after_failures_in_a_row_and_stays_open():
    breaker = CircuitBreaker(4)
    for alive in (False, False, False, True, False, False, False):
        breaker.note(alive=alive)
    assert not breaker.open
    breaker.note(alive=False)
    assert breaker.open
    breaker.note(alive=True)
    assert breaker.open


def test_the_breaker_waits_for_three_failures_at_least():
    breaker = CircuitBreaker(1)
    breaker.note(alive=False), breaker.note(alive=False)
    assert not breaker.open
    breaker.note(alive=False)
    assert breaker.open
