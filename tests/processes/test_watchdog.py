"""Of two ranks one fails: both stop, and both say why; without a Trainer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from guardlit.errors import GuardlitError
from guardlit.processes.rank_errors import OtherRankError
from guardlit.processes.watchdog import RankWatchdog
from guardlit.processes.world import World

FORK = multiprocessing.get_context("fork")
Rank = Callable[[World, RankWatchdog], None]


def meet(world: World, watchdog: RankWatchdog) -> None:
    """A collective that every rank reaches."""
    world.largest(0)


def fail(world: World, watchdog: RankWatchdog) -> None:
    """An error of this rank alone."""
    raise RuntimeError("the wires are cut\nand more lines")


def fail_everywhere(world: World, watchdog: RankWatchdog) -> None:
    """An error that every rank has."""
    world.raise_on_all(GuardlitError("the prompt file is gone") if world.rank else None)


def die(world: World, watchdog: RankWatchdog) -> None:
    """No error."""
    os.kill(os.getpid(), signal.SIGKILL)


def of_two(*ranks: Rank, runs_before: int = 0) -> list[str]:
    """What each of two ranks ends with: the error's class and message, `done`, or its exit code."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int, pipe: multiprocessing.connection.Connection) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
        world, watchdog = World(rank, 2, torch.device("cpu")), RankWatchdog()
        for _ in range(runs_before):
            watchdog.start(world)
            with watchdog.supervise():
                meet(world, watchdog)
        watchdog.start(world)
        try:
            with watchdog.supervise():
                ranks[rank](world, watchdog)
            pipe.send("done")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
        os._exit(0)

    ends, processes = [], []
    for rank in range(2):
        mine, others = FORK.Pipe(duplex=False)
        process = FORK.Process(target=work, args=(rank, others))
        process.start()
        others.close()
        ends.append(mine)
        processes.append(process)
    said = []
    for end, process in zip(ends, processes, strict=True):
        try:
            said.append(end.recv() if end.poll(60) else "silent")
        except EOFError:
            process.join(10)
            said.append(f"exit code {process.exitcode}")
    for process in processes:
        process.kill()
        process.join()
    return said


def test_ranks_that_succeed_are_left_alone():
    assert of_two(meet, meet) == ["done", "done"]


@pytest.mark.parametrize(("failing", "runs_before"), [(0, 0), (1, 0), (1, 2)])
def test_an_error_of_one_rank_is_named_by_the_other(failing: int, runs_before: int):
    """Also in a later run of one script, such as `validate` after `fit`."""
    said = of_two(*((fail, meet) if failing == 0 else (meet, fail)), runs_before=runs_before)
    assert said[failing] == "RuntimeError: the wires are cut\nand more lines"
    cause = f"rank {failing}: RuntimeError: the wires are cut"
    assert said[1 - failing] == f"{OtherRankError.__name__}: stopped because another rank failed: {cause}"


def test_an_error_of_all_ranks_is_each_one_s_own():
    assert of_two(fail_everywhere, fail_everywhere) == ["GuardlitError: the prompt file is gone"] * 2


def test_a_rank_that_is_killed_is_named_by_the_other():
    said = of_two(meet, die)
    assert said[1] == f"exit code {-signal.SIGKILL}"
    missing = "rank 1, last at the start, is dead, stopped or disconnected"
    assert said[0].startswith(f"OtherRankError: {missing}: all_reduce of rank 0 at the start failed (RuntimeError: ")


def test_the_loss_of_the_host_of_the_store_is_said():
    said = of_two(die, meet)
    assert said[1] == "OtherRankError: rank 0 or torchrun is gone, which hosts the store that connects the ranks"


def test_ranks_that_never_connected():
    watchdog = RankWatchdog()
    match = r"^the ranks of this run did not connect: DistNetworkError: refused$"
    with pytest.raises(GuardlitError, match=match), watchdog.supervise():
        raise dist.DistNetworkError("refused")
