"""The ranks of one run, forked from a server that has imported everything: seconds faster each than torchrun."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["guardlit.commands.lightning_cli", "diffusers", "peft", "transformers", "troubles", "frozen"]
)


def _run(args: list[str], environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    for number in (signal.SIGINT, signal.SIGTERM):  # the server ignores SIGINT
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    import torch

    from guardlit.cli import main

    torch.set_num_threads(1)
    sys.exit(main(args))


@dataclass
class Forked:
    """A run that has started.

    Attributes:
        processes: by rank.
        logs: what each writes, by rank.
    """

    processes: list[BaseProcess]
    logs: list[Path]

    def wait(self, seconds: float = 200) -> list[int]:
        """Exit codes by rank; a process that lives longer is killed, and its code says so."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(until - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()
        return [int(process.exitcode or 0) for process in self.processes]

    def last(self, rank: int) -> str:
        """The last line that a process wrote."""
        return self.logs[rank].read_text().strip().splitlines()[-1]

    def kill(self, number: int, *ranks: int) -> None:
        """Send a signal to the processes `ranks`."""
        for rank in ranks:
            os.kill(self.processes[rank].pid or 0, number)

    def until(self, path: Path, seconds: float = 200) -> None:
        """Wait for a file."""
        end = time.monotonic() + seconds
        while not path.exists() and any(p.is_alive() for p in self.processes) and time.monotonic() < end:
            time.sleep(0.05)
        assert path.exists(), [log.read_text()[-2000:] for log in self.logs]


def forked(folder: Path, *args: object, processes: int = 2, device: str | None = None, **environment: str) -> Forked:
    """Start `guardlit ARGS` as the processes of one run, as torchrun would; logs go to `folder`, or to a device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    shared |= {"LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "t", "HF_HUB_OFFLINE": "1"}
    started, logs = [], []
    for rank in range(processes):
        log = Path(device or folder / f"process_{rank}.log")
        own = {**shared, "GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "LOCAL_RANK": str(rank), **environment}
        process = CONTEXT.Process(target=_run, args=([str(a) for a in args], own, str(log)), daemon=True)
        process.start()
        started.append(process)
        logs.append(log)
    return Forked(started, logs)


def on_ranks(function: Callable[..., T], *args: object, size: int = 2) -> list[T]:
    """Call `function(world, *args)` on the ranks of a gloo group, forked from this process; what each returns."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.SimpleQueue()
    start = [context.Process(target=_rank, args=(rank, size, port, function, args, results)) for rank in range(size)]
    for process in start:
        process.start()
    found = dict(results.get() for _ in start)
    for process in start:
        process.join()
    failed = [value for value in found.values() if isinstance(value, BaseException)]
    if failed:
        raise failed[0]
    return [found[rank] for rank in range(size)]


def _rank(rank: int, size: int, port: int, function: Callable[..., T], args: tuple, results: Any) -> None:
    import torch
    import torch.distributed as dist

    from guardlit.processes.world import World

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        timeout = timedelta(seconds=60)
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timeout)
        found: object = function(World(rank, size, torch.device("cpu"), timeout), *args)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:  # whatever it is, the test must see it
        found = error
    results.put((rank, found))
