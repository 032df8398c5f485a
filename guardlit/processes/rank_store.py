"""Heartbeats and the first error of a run's ranks, in the store by which the ranks connected."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch.distributed as dist


class Heartbeat(NamedTuple):
    """A sign of life.

    Attributes:
        clock: a number that changes from one heartbeat to the next.
        steps: places that the rank has passed.
        place: the last of them.
    """

    clock: int
    steps: int
    place: str


class RankStore:
    """What one rank writes for the others, and reads from them; every method raises RuntimeError if the store is gone.

    Args:
        store: a `torch.distributed.Store` common to the ranks; used by nothing else that may block.
        rank: of this process.
        size: world size.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store = store
        self._rank, self._size = rank, size

    @classmethod
    def connect(cls, run: int, rank: int, size: int) -> RankStore:
        """The default process group's store, on a connection that a waiting collective does not block.

        Args:
            run: number of the run; several runs of one process share the store.
            rank: of this process.
            size: world size.
        """
        group = dist.group.WORLD
        assert group is not None
        store = group.get_group_store().clone()
        return cls(dist.PrefixStore(f"guardlit/{run}", store), rank, size)  # type: ignore[attr-defined]

    def beat(self, steps: int, place: str) -> None:
        """Write this rank's heartbeat."""
        self._store.set(f"beat/{self._rank}", f"{time.monotonic_ns()}|{steps}|{place}")

    def heartbeats(self) -> dict[int, Heartbeat]:
        """The last heartbeat of every other rank."""
        found = {}
        for rank in set(range(self._size)) - {self._rank}:
            clock, steps, place = self._store.get(f"beat/{rank}").decode().split("|", 2)
            found[rank] = Heartbeat(int(clock), int(steps), place)
        return found

    def publish(self, error: str) -> str:
        """Write this rank's error unless another rank was first; returns the first one, which counts as read."""
        first = str(self._store.compare_set("first", "", error).decode())
        self._store.set(f"seen/{self._rank}", "")
        return first

    def first_error(self) -> str:
        """The first error of any rank, which is then marked as read by this one; empty while there is none."""
        if not self._store.check(["first"]):
            return ""
        error = str(self._store.get("first").decode())
        self._store.set(f"seen/{self._rank}", "")
        return error

    def wait_for_readers(self, seconds: float) -> None:
        """On the rank that hosts the store, wait until the other ranks have read the first error.

        Args:
            seconds: to wait at most.
        """
        hosts = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        until = time.monotonic() + seconds
        seen = [f"seen/{rank}" for rank in range(1, self._size)]
        while hosts and not self._store.check(seen) and time.monotonic() < until:
            time.sleep(0.1)


def missing_ranks(before: Mapping[int, Heartbeat], now: Mapping[int, Heartbeat], dead: Collection[int]) -> str:
    """Which ranks a failed collective waited for, as a clause: those that are silent or, if none is, furthest behind.

    Args:
        before: heartbeats some seconds ago.
        now: the present ones.
        dead: ranks that are known to have exited.
    """
    missing = sorted(dead) or [rank for rank in sorted(now) if now[rank].clock == before[rank].clock]
    what = "is dead, stopped or disconnected"
    if not missing:
        least = min(beat.steps for beat in now.values())
        missing, what = [rank for rank in sorted(now) if now[rank].steps == least], "is furthest behind"
    who = " ".join(f"rank {rank}, last at {now[rank].place}," for rank in missing)
    return f"{who} {what}"
