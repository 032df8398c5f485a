"""The client of reward servers, against a real server on this machine."""

from __future__ import annotations

import asyncio
import json
import random
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import numpy as np
import pytest
import torch
from fastapi import FastAPI, Request, Response
from loopback import dead_address, serving

from guardlit.errors import GuardlitError
from guardlit.rewards.remote.client import Call, Client, Limits
from guardlit.rewards.remote.retries import RefusedError


class Echo:
    """Answers /echo with the number it got, unless `behave` gives another response for it."""

    def __init__(self, behave=lambda number, seen: None):
        self.app, self.requests, self.headers = FastAPI(), [], []
        self._behave = behave

        @self.app.post("/echo")
        async def echo(request: Request):
            number = await request.json()
            self.requests.append(number)
            self.headers.append(request.headers)
            other = self._behave(number, self.requests.count(number))
            if asyncio.iscoroutine(other):
                other = await other
            return number if other is None else other


def ask(number: int) -> Call[int]:
    return Call("POST", "/echo", read_number, lambda: json.dumps(number).encode())


def read_number(body: bytes) -> int:
    number = json.loads(body)
    if not isinstance(number, int):
        raise ValueError("no number")
    return number


def outcomes(behave, limits: Limits, count: int = 1):
    """What becomes of `count` calls, how many requests that took, and the counters."""
    echo = Echo(behave)
    with serving(echo.app) as url, Client(url, limits) as client:
        made = client.map([ask(i) for i in range(count)])
        return made, len(echo.requests), client.counters()


def test_replies_come_in_the_order_of_the_calls():
    async def later_calls_first(number, seen):
        await asyncio.sleep(0.002 * (30 - number))

    made, _, counters = outcomes(later_calls_first, Limits(concurrency=30), 30)
    assert [(outcome.value, outcome.error) for outcome in made] == [(i, None) for i in range(30)]
    assert counters["calls"] == 30
    assert counters["failures"] == counters["retries"] == counters["unparseable_share"] == 0
    assert 0 < counters["latency_p50"] <= counters["latency_p95"]


def test_as_many_calls_as_allowed_are_in_flight_and_no_more():
    inside, most, full = 0, 0, asyncio.Event()

    async def wait_for_seven_more(number, seen):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 8:
            full.set()
        await full.wait()
        await asyncio.sleep(0.01)  # a ninth would come in here
        inside -= 1

    made, *_ = outcomes(wait_for_seven_more, Limits(concurrency=8, read=20), 40)
    assert [outcome.value for outcome in made] == list(range(40))
    assert most == 8


def test_every_third_reply_a_503_costs_retries_and_nothing_else():
    count = 0

    def third(number, seen):
        nonlocal count
        count += 1
        return Response("busy", 503) if count % 3 == 0 else None

    made, requests, counters = outcomes(third, Limits(), 24)
    assert [outcome.value for outcome in made] == list(range(24))
    assert requests == 24 + counters["retries"] >= 35
    assert counters["failures"] == 0


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 599])
def test_what_may_pass_is_retried(status):
    made, requests, _ = outcomes(lambda n, seen: Response("", status) if seen == 1 else None, Limits())
    assert made[0].value == 0
    assert requests == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_not_retried(status):
    made, requests, counters = outcomes(lambda n, seen: Response("no\n such  thing", status), Limits())
    assert made[0].error == f"POST /echo: HTTP {status}: no such thing"
    assert (made[0].value, requests, counters["failures"]) == (None, 1, 1)
    assert "latency_p50" not in counters


def test_attempts_are_bounded():
    made, requests, counters = outcomes(lambda n, seen: Response("busy", 503), Limits(attempts=3))
    assert made[0].error == "POST /echo: HTTP 503: busy"
    assert (requests, counters["retries"]) == (3, 2)


def test_an_unreadable_reply_is_asked_for_twice_more():
    made, requests, counters = outcomes(lambda n, seen: Response('"x"'), Limits(attempts=9))
    assert made[0].error == "POST /echo: unreadable reply (ValueError: no number)"
    assert (requests, counters["unparseable_share"]) == (3, 1)
    made, requests, counters = outcomes(lambda n, seen: Response("{" * 9999) if seen < 3 else None, Limits())
    assert (made[0].value, requests, counters["unparseable_share"]) == (0, 3, pytest.approx(2 / 3))


def test_a_silent_server_ends_a_call_by_read_or_by_total():
    async def silent(number, seen):
        await asyncio.sleep(60)

    made, requests, _ = outcomes(silent, Limits(read=0.2, attempts=2), 4)
    assert {outcome.error for outcome in made} == {"POST /echo: ReadTimeout"}
    assert requests == 8
    made, requests, _ = outcomes(silent, Limits(total=0.3), 4)
    assert {outcome.error for outcome in made} == {"POST /echo: no answer within 0.3 s"}
    assert requests == 4


def test_a_dripping_reply_is_bounded_by_total():
    async def drip(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b" ", "more_body": True})
                await asyncio.sleep(0.05)

    with serving(drip) as url, Client(url, Limits(read=5, total=0.5)) as client:
        assert client.map([ask(0)])[0].error == "POST /echo: no answer within 0.5 s"


def test_no_server():
    with Client(dead_address(), Limits(attempts=2)) as client:
        assert "ConnectError" in str(client.map([ask(0)])[0].error)
        with pytest.raises(GuardlitError, match=r"^http://127.0.0.1:\d+: POST /echo: ConnectError"):
            client.ask(ask(0))


def test_a_server_that_dies_does_not_cost_every_call_its_attempts():
    made, requests, counters = outcomes(lambda n, seen: Response("", 500), Limits(attempts=2, concurrency=4), 100)
    assert all(outcome.value is None for outcome in made)
    assert requests <= 2 * (4 + 4)
    assert str(made[-1].error) == "POST /echo: not sent, as the server stopped answering"
    assert counters["failures"] == 100


def test_a_server_that_answers_some_calls_is_asked_all_of_them():
    made, *_ = outcomes(
        lambda n, seen: None if n % 3 == 2 else Response("", 500), Limits(attempts=1, concurrency=1), 30
    )
    assert [outcome.value for outcome in made] == [n if n % 3 == 2 else None for n in range(30)]
    assert not any("not sent" in str(outcome.error) for outcome in made)
    refused, *_ = outcomes(lambda n, seen: Response("", 400), Limits(concurrency=1), 20)
    assert not any("not sent" in str(outcome.error) for outcome in refused)


def test_bytes_that_are_not_http_or_not_what_they_say():
    class Noise(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(4096)
            self.request.sendall(b"\x00\xff 200 OK {}\r\n\r\n17")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Noise) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Client(f"http://127.0.0.1:{server.server_address[1]}", Limits(attempts=2)) as client:
            assert "RemoteProtocolError" in str(client.map([ask(0)])[0].error)
        server.shutdown()
    made, *_ = outcomes(lambda n, seen: Response("17", headers={"content-encoding": "gzip"}), Limits(attempts=2))
    assert "DecodingError" in str(made[0].error)


def test_retry_after_is_waited_for_unless_it_is_too_long():
    times = []

    def later(number, seen):
        times.append(time.monotonic())
        return Response("", 429, {"retry-after": "1"}) if seen == 1 else None

    made, *_ = outcomes(later, Limits())
    assert made[0].value == 0
    assert times[1] - times[0] >= 1
    made, requests, _ = outcomes(lambda n, seen: Response("", 429, {"retry-after": "700"}), Limits())
    assert (made[0].error, requests) == ("POST /echo: HTTP 429: Too Many Requests", 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3), ("0", 0), ("-3", 0), ("", 0), ("soon", 0), ("nan", 0), ("inf", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_a_retry_after_that_cannot_be_read_asks_for_nothing(header, seconds):
    assert refused(header).retry_after == seconds


def test_retry_after_may_be_a_date():
    assert 50 < refused(format_datetime(datetime.now(UTC) + timedelta(minutes=1), usegmt=True)).retry_after <= 60


def refused(header: str) -> RefusedError:
    from httpx2 import Response as Reply

    return RefusedError(Reply(429, headers={"retry-after": header}))


def test_the_token_is_sent_and_never_shown(monkeypatch, caplog):
    echo = Echo(lambda n, seen: Response("", 500) if seen == 1 else None)
    monkeypatch.setenv("MY_TOKEN", "s3cret\n")
    caplog.set_level("DEBUG")
    with serving(echo.app) as url, Client(url, token_env="MY_TOKEN") as client:
        client.ask(ask(1))
    assert {headers["authorization"] for headers in echo.headers} == {"Bearer s3cret"}
    assert "s3cret" not in caplog.text
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(GuardlitError, match=r"^the environment variable MY_TOKEN, named by `token_env`, is not set"):
        Client(url, token_env="MY_TOKEN")


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://", "http://me:pw@host"])
def test_an_invalid_address(url):
    with pytest.raises(GuardlitError) as caught:
        Client(url)
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_proxies_are_left_out_on_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, dead_address())
    assert outcomes(lambda n, seen: None, Limits())[0][0].value == 0


@pytest.mark.parametrize(
    "wrong", [{"read": 0}, {"connect": -1}, {"total": float("inf")}, {"attempts": 0}, {"concurrency": 0}]
)
def test_invalid_limits(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_counters_begin_anew():
    echo = Echo()
    with serving(echo.app) as url, Client(url) as client:
        client.map([ask(0), ask(1)])
        assert client.counters()["calls"] == 2
        assert client.counters() == {"calls": 0, "failures": 0, "retries": 0}


def test_closing_ends_a_map_in_another_thread():
    begun, ended = threading.Event(), []

    async def silent(number, seen):
        begun.set()
        await asyncio.sleep(60)

    def work(client):
        with pytest.raises(CancelledError):
            client.map([ask(0)] * 3)
        ended.append(True)

    with serving(Echo(silent).app) as url:
        client = Client(url, Limits(read=30))
        thread = threading.Thread(target=work, args=[client])
        thread.start()
        assert begun.wait(20)
        client.close()
        thread.join(20)
    assert ended == [True]


def test_the_global_random_state_is_unchanged():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    outcomes(lambda n, seen: Response("", 500) if seen == 1 else None, Limits(), 3)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_process_that_never_closes_a_client_ends_quietly():
    script = "import json, sys; from guardlit.rewards.remote.client import *; client = Client(sys.argv[1])\n"
    script += "print(client.ask(Call('POST', '/echo', json.loads, lambda: b'7')))"
    with serving(Echo().app) as url:
        done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
