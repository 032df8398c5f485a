"""Runs as processes that are forked from this one, which has imported what they need: a second each instead of ten."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

PR_SET_PDEATHSIG = 1
FORK = multiprocessing.get_context("fork")
Prepare = Callable[[int], object]
"""Called in a process before `guardlit`, with its rank: how a fault gets into a run."""


def import_all() -> None:
    """Import here, once, what a run of the tiny model would import for itself."""
    import diffusers
    import peft
    import torch
    import transformers

    import guardlit.commands.lightning_cli
    import guardlit.policies.sd3
    import guardlit.rewards.jpeg  # noqa: F401

    torch.set_num_threads(1)
    _ = diffusers.StableDiffusion3Pipeline, transformers.CLIPTextModelWithProjection, transformers.T5EncoderModel
    _ = peft.LoraConfig, diffusers.SD3Transformer2DModel, diffusers.AutoencoderKL


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        codes: by rank; -9 for a process that was killed.
        last: the last line that each rank wrote.
        seconds: from the moment that was asked about until nothing was left.
        stuck: processes that had to be killed because they had not ended in time.
    """

    codes: list[int]
    last: list[str]
    seconds: float
    stuck: list[str] = field(default_factory=list)


class Launch:
    """One start of `guardlit ARGS` on one or several processes, each with a file of what it said.

    Several processes are started by torchrun's own agent, or, with `agent=False`, without a launcher:
    then each must notice by itself that another one is gone.

    Args:
        args: of the command line.
        folder: for what the processes say; made here.
        processes: of the run.
        prepare: called in each process first.
        agent: whether torchrun launches several processes.
        program: that is executed with `args` instead, in a process that has imported nothing; it counts as one process.
    """

    def __init__(
        self,
        args: list[str],
        folder: Path,
        processes: int = 1,
        prepare: Prepare | None = None,
        agent: bool = True,
        program: list[str] | None = None,
    ) -> None:
        self.folder, self.world = folder, processes
        folder.mkdir(parents=True)
        self._work = (args, folder, prepare)
        sys.stdout.flush()
        sys.stderr.flush()
        if program is not None:
            self._started = [self._start(_execute, program)]
        elif processes > 1 and agent:
            self._started = [self._start(_agent, processes)]
        else:
            port = free_port()
            self._started = [self._start(_alone, rank, processes, port) for rank in range(processes)]

    def _start(self, target: Callable[..., None], *args: object) -> BaseProcess:
        process = FORK.Process(target=target, args=(*args, *self._work))
        process.start()
        return process

    def pids(self, limit: float = 120.0) -> list[int]:
        """Process ids by rank, once all ranks exist."""
        until = time.monotonic() + limit
        files = [self.folder / f"pid_{rank}" for rank in range(self.world)]
        while not all(f.exists() and f.read_text() for f in files):
            if time.monotonic() > until or not self.alive:
                raise TimeoutError(f"{self.folder}: not all processes came up")
            time.sleep(0.002)
        return [int(f.read_text()) for f in files]

    @property
    def alive(self) -> bool:
        """Whether a process that was started here still runs."""
        return any(process.is_alive() for process in self._started)

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Send a signal to some ranks; to everything that belongs to the run, torchrun's agent included, by default."""
        if ranks is not None:
            for pid in (self.pids()[rank] for rank in ranks):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def signal_launcher(self, number: int) -> None:
        """Send a signal to torchrun's agent alone."""
        os.kill(self._started[0].pid, number)

    def said(self, rank: int = 0) -> str:
        """What a rank wrote so far."""
        file = self.folder / f"rank_{rank}.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def until(self, ready: Callable[[], bool], limit: float = 300.0, every: float = 0.005) -> bool:
        """Wait while the run lasts; whether it became ready before it exited."""
        end = time.monotonic() + limit
        while self.alive and time.monotonic() < end:
            if ready():
                return True
            time.sleep(every)
        return ready()

    def wait(self, limit: float = 600.0) -> Ended:
        """Wait until all processes have exited; one that is left after `limit` seconds is killed, and named."""
        begun = time.monotonic()
        while any(process.exitcode is None for process in self._started) and time.monotonic() < begun + limit:
            time.sleep(0.01)
        while self._left() and time.monotonic() < begun + limit:
            time.sleep(0.02)
        seconds, stuck = time.monotonic() - begun, self._left()
        if stuck:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            for process in self._started:
                process.join()
        ranks = range(self.world)
        return Ended([self._code(r) for r in ranks], [_last_line(self.said(r)) for r in ranks], seconds, stuck)

    def _left(self) -> list[str]:
        """Processes of the groups that were started here, grandchildren included; zombies are gone."""
        groups = {process.pid for process in self._started}
        return [name for name, group, state in _processes() if group in groups and state != "Z"]

    def _code(self, rank: int) -> int:
        if self.world == len(self._started):
            return int(self._started[rank].exitcode or 0)
        file = self.folder / f"code_{rank}"
        return int(file.read_text()) if file.exists() else -signal.SIGKILL


def _processes() -> Iterator[tuple[str, int, str]]:
    """Name with id, process group and state of every process."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().rpartition(")")
                state, _, group = rest.split()[:3]
                yield f"{name.partition('(')[2]} {entry.name}", int(group), state


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _begin() -> None:
    """Make this process the first of a group, which ends with the process that has forked it."""
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _alone(rank: int, world: int, port: int, args: list[str], folder: Path, prepare: Prepare | None) -> None:
    """A process without a launcher; several connect as under torchrun."""
    _begin()
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {"TORCHELASTIC_RUN_ID": "faults", "GLOO_SOCKET_IFNAME": "lo"}
    sys.exit(_run(rank, args, folder, prepare))


def _agent(world: int, args: list[str], folder: Path, prepare: Prepare | None) -> None:
    """What `torchrun --standalone --nproc-per-node=WORLD` does."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _begin()
    _write_to(folder / "agent.txt")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "faults"}
    config = LaunchConfig(1, 1, world, **rendezvous, max_restarts=0, start_method="fork", local_addr="127.0.0.1")
    try:
        elastic_launch(config, _rank)(args, folder, prepare)
    except ChildFailedError as error:
        print(error, flush=True)
        sys.exit(1)


def _execute(program: list[str], args: list[str], folder: Path, prepare: Prepare | None) -> None:
    _begin()
    _write_to(folder / "rank_0.txt")
    (folder / "pid_0").write_text(str(os.getpid()))
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    os.execv(program[0], [*program, *args])


def _rank(args: list[str], folder: Path, prepare: Prepare | None) -> None:
    rank = int(os.environ["RANK"])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)  # torchrun's processes, unlike forked ones, outlive it
    agent = os.getppid()
    code = _run(rank, args, folder, prepare)
    (folder / f"code_{rank}").write_text(str(code))
    # by its exit code, as from a script: an exception would tell the agent more than torchrun knows, and to return is
    # to wait for an agent that may be gone
    if code or os.getppid() != agent:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(rank: int, args: list[str], folder: Path, prepare: Prepare | None) -> int:
    import torch

    from guardlit.cli import main

    # what torch keeps of the parent's threads is renewed here: else autograd's threads would all do it, and may collide
    torch.set_num_threads(1)
    _write_to(folder / f"rank_{rank}.txt")
    temporary = folder / f".pid_{rank}"
    temporary.write_text(str(os.getpid()))
    temporary.replace(folder / f"pid_{rank}")
    if prepare is not None:
        prepare(rank)
    try:
        return main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1


def _write_to(file: Path) -> None:
    """Let what this process and its children say go to a file."""
    with file.open("w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
