"""Whatever a server answers, and however: its number in its place, or NaN, within bounded time."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socketserver
import threading
import time

import pytest
import torch
from remotes import QUICK, ready, request, said_at_setup
from servers import body_of, reply, thread

from guardlit.rewards.remote import client as http
from guardlit.rewards.remote.client import Limits
from guardlit.rewards.remote.wire import pack, unpack

PROVENANCE = {"scorer": "gray"}
INFO = {"protocol": 1, "scorers": {"gray": {"provenance": PROVENANCE}}}


class Hostile:
    """Gives each image its gray level over 256, but treats each request as a seeded generator says.

    Which fault a request gets follows from its first image, so that it does not depend on timing; whether a request is
    meant to succeed is `good`.
    """

    READABLE = ("nan", "inf", "huge", "none", "text", "bool", "nested", "error", "provenance", "details")
    """Faults of the items of an answer, or of its provenance. `details` spoils only those."""
    UNREADABLE = (
        *("garbage", "short", "long", "protocol", "html", "json", "list", "empty", "cut", "items", "204", "404"),
        *("500", "429", "429 tomorrow", "break"),
    )
    """Faults of a complete answer."""
    ALWAYS = (*READABLE, *UNREADABLE)
    """Faults that stay."""
    ONCE = ("500 once", "429 once", "429 after once", "garbage once", "503 date once", "break once")
    SLOW = ("hang", "trickle")
    """Faults that last until the client gives up."""

    def __init__(self, seed: int, info: object = INFO, slow: bool = False) -> None:
        self.seed, self.info = seed, info
        self.faults = self.SLOW if slow else (*self.ALWAYS, *self.ONCE, *["good"] * 8)
        self.seen: dict[int, int] = {}

    def fault(self, first: int) -> str:
        return random.Random(self.seed * 1000 + first).choice(self.faults)

    def good(self, first: int) -> bool:
        return self.fault(first) in ("good", "details", *self.ONCE)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = await body_of(receive)
        if scope["method"] == "GET":
            await reply(send, 200, json.dumps(self.info).encode(), "application/json")
            return
        values = [item["image"]["data"][0] / 256 for item in unpack(body)["items"]]
        first = int(values[0] * 256)
        self.seen[first] = self.seen.get(first, 0) + 1
        fault = self.fault(first)
        if fault.endswith(" once"):
            fault = fault.removesuffix(" once") if self.seen[first] == 1 else "good"
        await self._answer(fault, values, send)

    async def _answer(self, fault: str, values: list[float], send) -> None:
        items: list = [{"value": value, "details": {"twice": 2 * value}} for value in values]
        good = {"protocol": 1, "scorer": "gray", "provenance": PROVENANCE, "items": items}
        value = {"nan": math.nan, "inf": -math.inf, "huge": 1e300, "none": None, "text": "0.5", "bool": True,
                 "nested": [0.5]}.get(fault, 0)  # fmt: skip
        bad_items = [{"value": value}] * len(values)
        changed = {
            "short": {"items": items[:-1]},
            "long": {"items": [*items, {"value": 0.5}]},
            "protocol": {"protocol": 2},
            "provenance": {"provenance": {"scorer": "other"}},
            "items": {"items": {"0": 0.5}},
            "error": {"items": [{"error": "x", "value": 0.5}] * len(values)},
            "details": {"items": [{**item, "details": {"twice": math.inf}} for item in items]},
        }.get(fault, {"items": bad_items} if fault in ("nan", "inf", "huge", "none", "text", "bool", "nested") else {})
        whole = pack(good | changed)
        other = {
            "garbage": (200, bytes(random.Random(len(values)).randbytes(200))),
            "html": (200, b"<html>busy</html>"),
            "json": (200, json.dumps(good).encode()),
            "list": (200, pack(values)),
            "empty": (200, b""),
            "cut": (200, whole[:-3]),
            "500": (500, whole),
            "429": (429, whole),
            "429 after": (429, whole),
            "429 tomorrow": (429, whole),
            "503 date": (503, whole),
            "404": (404, whole),
            "204": (204, b""),
        }
        waits = {"429 after": "0", "429 tomorrow": "86400", "503 date": "Wed, 21 Oct 2015 07:28:00 GMT"}
        headers = {"retry_after": waits[fault]} if fault in waits else {}
        if fault in (*self.SLOW, "break"):
            await self._misbehave(fault, whole, send)
        else:
            await reply(send, *other.get(fault, (200, whole)), **headers)

    async def _misbehave(self, fault: str, whole: bytes, send) -> None:
        if fault == "hang":
            await asyncio.sleep(3600)
        length = (b"content-length", b"%d" % len(whole))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        if fault == "break":
            await send({"type": "http.response.body", "body": whole[:-3], "more_body": True})
            raise ConnectionAbortedError
        for i in range(len(whole)):  # a byte now and then, so that the connection is never silent for long
            await send({"type": "http.response.body", "body": whole[i : i + 1], "more_body": True})
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_server_answers_is_its_number_or_none(seed: int):
    """64 requests of 2 images a seed: 320 in all."""
    server = Hostile(seed)
    with thread(server) as url:
        remote = ready(url, chunk=2, limits=Limits(attempts=2, total=60))
        result = remote.score(request(128))
        counted = remote.counters()
        remote.close()
    faults = [server.fault(2 * (i // 2)) for i in range(128)]
    good = torch.tensor([server.good(2 * (i // 2)) for i in range(128)])
    expected = torch.arange(128) / 256
    assert good.any()
    assert not good.all()
    assert torch.equal(result.valid, good), [faults[i] for i in (result.valid != good).nonzero()]
    assert torch.equal(result.values[good], expected[good])  # in their places
    assert result.values[~good].isnan().all()
    named = good & torch.tensor([fault != "details" for fault in faults])
    assert torch.equal(result.details["twice"][named], 2 * expected[named])
    assert result.details["twice"][[i for i, fault in enumerate(faults) if fault == "details"]].isnan().all()
    assert result.reason
    assert counted["failures"] == len({2 * (i // 2) for i in range(128) if faults[i] in Hostile.UNREADABLE})
    assert counted["retries"] > 0


def test_every_fault_is_met():
    met = {Hostile(seed).fault(first) for seed in range(5) for first in range(0, 128, 2)}
    assert met == {"good", *Hostile.ALWAYS, *Hostile.ONCE}


def test_a_server_that_is_too_slow_costs_no_more_than_the_limits_allow():
    """Neither silence nor a trickle that never ends holds a run up: 64 requests, 32 at once."""
    server = Hostile(0, slow=True)
    with thread(server, grace=1) as url:
        remote = ready(url, chunk=2, limits=Limits(read=2, attempts=2, total=3))
        begun = time.monotonic()
        result = remote.score(request(128))
        seconds = time.monotonic() - begun
        remote.close()
    assert {server.fault(first) for first in range(0, 128, 2)} == set(Hostile.SLOW)
    assert not result.valid.any()
    assert result.values.isnan().all()
    assert seconds < 100  # nothing answers within an hour


INFOS = {
    "a list": [],
    "no protocol": {"scorers": INFO["scorers"]},
    "another protocol": INFO | {"protocol": 2},
    "no scorers": {"protocol": 1},
    "none of them": {"protocol": 1, "scorers": {}},
    "no provenance": {"protocol": 1, "scorers": {"a": {}}},
    "scorers of another kind": {"protocol": 1, "scorers": [1]},
}


@pytest.mark.parametrize("kind", INFOS)
def test_what_is_no_reward_server_is_refused(kind: str):
    with thread(Hostile(0, INFOS[kind])) as url:
        assert "GET /info: unreadable reply" in said_at_setup(url, limits=QUICK)


# below HTTP ----------------------------------------------------------------------------------------------------------

BROKEN = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 2",
    "no body": b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
    "a part of the body": b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + pack({"protocol": 1}),
    "a chunk cut short": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\nabc",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "a body that is no gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000,
}


class _Breaking(socketserver.StreamRequestHandler):
    """Answers GET as it should, and POST with some bytes and a closed connection."""

    def handle(self) -> None:
        method, length = self.rfile.readline()[:4], 0
        while (line := self.rfile.readline().strip().lower()) != b"":
            length = int(line.split()[1]) if line.startswith(b"content-length") else length
        self.rfile.read(length)
        if method == b"GET ":
            body = json.dumps(INFO).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        else:
            self.wfile.write(self.server.answer)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_connection_that_breaks(kind: str):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Breaking) as server:
        server.answer = BROKEN[kind]
        threading.Thread(target=server.serve_forever).start()
        remote = ready(f"http://127.0.0.1:{server.server_address[1]}", limits=Limits(attempts=2, total=60))
        result = remote.score(request())
        counted = remote.counters()
        remote.close()
        server.shutdown()
    assert not result.valid.any()
    assert result.values.isnan().all()
    assert "POST /v1/score: " in result.reason
    assert (counted["failures"], counted["retries"]) == (1, 1)


class _Endless(_Breaking):
    """Never stops answering POST."""

    def handle(self) -> None:
        try:
            super().handle()
            while True:
                self.wfile.write(b"80000\r\n" + b"x" * 0x80000 + b"\r\n")
        except OSError:  # the client has had enough
            pass


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_a_reply_without_end_fills_no_memory(status: str, monkeypatch):
    monkeypatch.setattr(http, "MOST_BYTES", 2_000_000)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Endless) as server:
        server.answer = b"HTTP/1.1 %s\r\ntransfer-encoding: chunked\r\n\r\n" % status.encode()
        threading.Thread(target=server.serve_forever).start()
        remote = ready(f"http://127.0.0.1:{server.server_address[1]}", limits=Limits(attempts=2, total=60))
        result = remote.score(request())
        remote.close()
        server.shutdown()
    assert result.values.isnan().all()
    assert ("HTTP 400: xxx" if "400" in status else "longer than 2,000,000 bytes") in result.reason
