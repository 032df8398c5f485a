"""Faults of rewards in other processes: servers that die, stall and lie, and processes of a scorer's pool."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults.inject import before, replace
from benchmarks.faults.processes import FORK, Prepare, free_port
from benchmarks.faults.scenario import Fault

HEALTHY = 4
"""Answers of a server before it goes bad: the start-up test, and the whole first round."""
ERROR = "guardlit fit: error: "

Lie = Callable[[list[dict[str, Any]], dict[str, str]], tuple[list[dict[str, Any]], dict[str, str]]]


def served(prepare: Prepare | None = None, late: bool = False) -> Callable[[Path], AbstractContextManager[Any]]:
    """A reward server for a run, as `guardlit serve-reward` runs it; `fixed` puts a good one in its place.

    Args:
        prepare: called in the server's process first.
        late: there is none until it is fixed.
    """

    @contextmanager
    def surroundings(folder: Path) -> Iterator[Mapping[str, object]]:
        port = free_port()
        server = None if late else _start(port, prepare)
        _SERVERS[folder] = (port, server)
        limits = {"connect": 1.0, "read": 1.5, "attempts": 2, "total": 4.0}
        asked = {"url": f"http://127.0.0.1:{port}", "scorer": "jpeg_compressibility", "limits": limits}
        try:
            yield {"model__reward": {"class_path": "RemoteReward", "init_args": asked}}
        finally:
            _end(_SERVERS.pop(folder)[1])

    return surroundings


_SERVERS: dict[Path, tuple[int, Any]] = {}


def fixed(folder: Path) -> None:
    """Replace the bad server by a good one."""
    port, server = _SERVERS[folder]
    _end(server)
    _SERVERS[folder] = (port, _start(port, None))


def _end(server: Any) -> None:
    if server is not None:
        server.kill()
        server.join()


def _start(port: int, prepare: Prepare | None) -> Any:
    server = FORK.Process(target=_serve, args=(port, prepare), daemon=True)
    server.start()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    raise TimeoutError("the reward server does not come up")


def _serve(port: int, prepare: Prepare | None) -> None:
    from guardlit.commands.serve_reward import ServerSettings, serve
    from guardlit.rewards import JPEGCompressibility

    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    if prepare is not None:
        prepare(0)
    serve(ServerSettings({"jpeg_compressibility": JPEGCompressibility()}, port=port))


def _lying(lie: Lie) -> Prepare:
    def wrap(original: Callable[..., bytes], call: int, scorer: str, items: Any, provenance: Any, media: str) -> bytes:
        if call > HEALTHY:
            items, provenance = lie([dict(item) for item in items], dict(provenance))
        return original(scorer, items, provenance, media)

    return replace("guardlit.serving.app:write_response", wrap)


def _each(value: object) -> Lie:
    return lambda items, provenance: ([{"value": value} for _ in items], provenance)


def _stalled(original: Callable[..., bytes], call: int, *args: Any) -> bytes:
    if call > HEALTHY:
        time.sleep(3600)
    return original(*args)


def _kill_reader(pool: Any, *_: Any) -> None:
    """Kill a process that reads text, while its images are given out."""
    os.kill(next(iter(pool._executor._processes)), signal.SIGKILL)


READ = {
    "class_path": "Composite",
    "init_args": {
        "terms": [
            {"scorer": {"class_path": "JPEGCompressibility"}, "weight": 1.0},
            {"scorer": {"class_path": "OCR", "init_args": {"workers": 1}}, "weight": 1.0},
        ]
    },
}
ANSWER = "guardlit.serving.app:write_response"
FAILED = (ERROR, "rewards failed", "on prompt '", "resume with --ckpt_path")

FAULTS = [
    Fault("reward server is not there", surroundings=served(late=True), says=(ERROR, "http://127"), fix=fixed),
    Fault(
        "reward server dies in the middle",
        surroundings=served(before(ANSWER, HEALTHY + 1, lambda *_: os._exit(1))),
        says=FAILED,
        fix=fixed,
    ),
    Fault(
        "reward server stalls",
        surroundings=served(before(ANSWER, HEALTHY + 1, lambda *_: time.sleep(3600))),
        codes=(0,),  # the second attempt is answered
    ),
    Fault(
        "reward server stalls for good",
        surroundings=served(replace(ANSWER, _stalled)),
        says=FAILED,
        fix=fixed,
    ),
    *(
        Fault(f"reward server lies: {what}", surroundings=served(_lying(lie)), says=(*FAILED, said), fix=fixed)
        for what, lie, said in (
            ("one score too few", lambda items, provenance: (items[:-1], provenance), "items for"),
            ("NaN", _each(float("nan")), "expected a finite number, found nan"),
            ("texts", _each("0.5"), "expected a finite number, found 0.5"),
            ("another scorer's scores", lambda items, provenance: (items, provenance | {"quality": "10"}), "quality"),
        )
    ),
    Fault(
        "a process of the scorer's pool is killed",
        changes={"model__reward": READ, "prompts": 'a sign says "two"\na sign says "cat"\n'},
        prepare=before("guardlit.rewards.ocr.engine:Readers.read", 4, _kill_reader),
        codes=(0,),
        limit=240.0,  # reading takes its time
    ),
]
