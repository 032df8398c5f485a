"""Reward servers on the loopback: `guardlit serve-reward` in a subprocess, or an application in a thread."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import yaml
from runs import start

from guardlit.rewards.base import Scorer
from guardlit.serving.app import ServerLimits, create_app
from guardlit.serving.worker import Worker

READY = re.compile(r"ready on (http://\S+) with")


@contextmanager
def process(
    folder: Path, scorers: Mapping[str, object], *options: object, **env: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`guardlit serve-reward` with these scorers on a free port: its address, and the process, killed at the end."""
    path = folder / "reward.yaml"
    path.write_text(yaml.safe_dump({"scorers": dict(scorers)}))
    server = start("serve-reward", "--config", path, "--port", 0, *options, **env)
    try:
        line = server.stdout.readline()
        ready = READY.search(line)
        assert ready, line + server.stderr.read()
        yield ready[1], server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        server.stderr.close()


@contextmanager
def thread(app: object, grace: int = 30) -> Iterator[str]:
    """Any ASGI application in a thread: its address; `grace` seconds are left to what is under way at the end."""
    up = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list | None = None) -> None:
            await super().startup(sockets)
            up.set()

    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=grace)
    server = Server(config)
    running = threading.Thread(target=server.run)
    running.start()
    assert up.wait(30)
    try:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        running.join()


@contextmanager
def serving(
    scorers: Mapping[str, Scorer], merge: Mapping[str, int] | None = None, token: str | None = None, **limits: float
) -> Iterator[str]:
    """The server's application around scorers of this process."""
    app = create_app(Worker(scorers, merge or {}), {"protocol": 1}, ServerLimits(**limits), token)
    with thread(app) as url:
        yield url


async def reply(send, status: int, body: bytes, kind: str = "application/msgpack", **headers: str) -> None:
    """Send a complete answer."""
    named = [(k.replace("_", "-").encode(), v.encode()) for k, v in {"content_type": kind, **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive) -> bytes:
    """Take in a request's body."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    return body
