"""Runs on several processes without starting an interpreter for each: `forked.py SPECIFICATION.json`.

The specification lists runs, one after another: {"folder", "processes", "args"}. Each process of a run is a fork of
this one, which has imported everything, with the environment that torchrun would give it; it says in `folder` how it
ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run_all(folder: Path, *runs: dict[str, Any], timeout: float = 280) -> None:
    """Run a list of {"folder", "processes", "args"} in a process of its own; fails the test where one never ends."""
    specification = folder / "runs.json"
    specification.write_text(json.dumps(runs, default=str))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(Path(__file__)), str(specification)]
    subprocess.run(command, env=environment, timeout=timeout, check=True)


def said(folder: Path, rank: int = 0) -> str:
    """The last thing that a process of a run said, and its exit code."""
    return " ".join((folder / f"process_{rank}.txt").read_text().splitlines()[-2:])


def _port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _one(rank: int, world: int, port: int, folder: Path, args: list[str]) -> None:
    import torch
    from runs import guardlit

    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0}
    if world > 1:
        os.environ.update({key: str(value) for key, value in places.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="forked")
    with (folder / f"process_{rank}.txt").open("w", buffering=1) as file, contextlib.redirect_stderr(file):
        code = guardlit(*args, *(("--trainer.devices", world) if world > 1 else ()))
        print(f"exit code {code}", file=file)
    if code == 0 and torch.distributed.is_initialized():
        torch.distributed.barrier()  # a process that is gone breaks what another one still has to finish
    os._exit(code)


def _wait(children: list[int], patience: float = 20) -> None:
    """For all to end; those that still wait for one that has failed are ended after a while, as a launcher would."""
    waiting, deadline = set(children), float("inf")
    while waiting:
        child, status = os.waitpid(-1, os.WNOHANG)
        waiting -= {child}
        if child and status:
            deadline = min(deadline, time.monotonic() + patience)
        if time.monotonic() > deadline:
            for other in waiting:
                os.kill(other, signal.SIGKILL)
        time.sleep(0 if child else 0.02)


def main(specification: Path) -> None:
    """Run what a file lists."""
    import diffusers  # noqa: F401 - for all forks at once
    import lightning.pytorch
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import guardlit.app  # noqa: F401

    torch.set_num_threads(1)
    del lightning
    for run in json.loads(specification.read_text()):
        port, world = _port(), run["processes"]
        children = []
        for rank in range(world):
            if not (child := os.fork()):
                _one(rank, world, port, Path(run["folder"]), run["args"])
            children.append(child)
        _wait(children)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
