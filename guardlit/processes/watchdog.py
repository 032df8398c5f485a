"""What the processes of a run tell each other beside their collectives: that they live, and why they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from guardlit.errors import GuardlitError
from guardlit.processes.collectives import largest
from guardlit.processes.phases import Phase

BEAT = 1.0
"""Seconds between two signs of life."""
GRACE = 20.0
"""Seconds in which a process ends by itself once one of them has failed; then its watch ends it."""
LINGER = 5.0
"""Seconds for which a failed process that keeps the store waits for the others to read why."""
FAILED = 1
GONE = "process 0, or torchrun, is gone: it keeps the store by which the processes hear of each other"

_LOST = re.compile(
    r"gloo|nccl|process ?group|connection (was likely )?(closed|reset|refused)|broken pipe|timed? ?out|remote process",
    re.IGNORECASE,
)


class OtherRankError(GuardlitError):
    """Why this process ends is another one's error."""


class RankWatchdog(pl.Callback):
    """Ends all processes of a run where one fails, and has each of them say why.

    A process that raises alone would leave the others waiting in a collective. So it tells its error at once, through
    the store by which the processes have found each other; every process has a thread that watches for it, and that
    ends the process where it does not end by itself, as in a collective on a GPU. An error that only says that somebody
    is gone is replaced by why, or by who it is: the one that was silent, or has come least far.

    Does nothing in a run of one process.
    """

    _runs = 0

    def __init__(self) -> None:
        self._store: Any = None
        self._rank, self._world = 0, 1
        self._first = ""
        self._place, self._steps = "the start", 0
        self._over, self._left, self._done = Event(), Event(), Event()
        self._trainer: pl.Trainer | None = None

    # signs of life ------------------------------------------------------------------------------------------------

    def attach(self, trainer: pl.Trainer) -> None:
        """Begin as soon as the processes have met, which is before any hook: to be called with a new Trainer."""
        meet = trainer.strategy.setup_environment

        def setup_environment() -> None:
            meet()
            if trainer.world_size > 1 and self._store is None:
                self._begin(trainer)

        trainer.strategy.setup_environment = setup_environment  # type: ignore[method-assign]

    def _begin(self, trainer: pl.Trainer) -> None:
        RankWatchdog._runs += 1  # several runs of one process share a store
        self._first = ""
        self._over, self._left, self._done = Event(), Event(), Event()
        world = dist.group.WORLD
        assert world is not None
        self._trainer, self._rank, self._world = trainer, trainer.global_rank, trainer.world_size
        # a connection of its own: a collective that waits in the store would hold up the watch
        store = world.get_group_store().clone()
        self._store = dist.PrefixStore(f"guardlit/{RankWatchdog._runs}", store)  # type: ignore[attr-defined]
        self._beat()
        largest(trainer, 0)  # by now each has given its first sign of life
        Thread(target=self._watch, name="watch of the other processes", daemon=True).start()

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Remember where this process stands."""
        self._stand(f"{phase} {done} of {total}")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remember where this process stands."""
        self._stand(f"validation batch {batch_idx}")

    def _stand(self, place: str) -> None:
        self._place, self._steps = place, self._steps + 1

    def _beat(self) -> None:
        self._store.set(f"beat/{self._rank}", f"{time.monotonic_ns()}|{self._steps}|{self._place}")

    def _beats(self) -> dict[int, list[str]]:
        others = (rank for rank in range(self._world) if rank != self._rank)
        return {rank: self._store.get(f"beat/{rank}").decode().split("|", 2) for rank in others}

    def _watch(self) -> None:
        try:
            while not self._first and not self._over.wait(BEAT):
                self._beat()
                self._look()
        except RuntimeError:  # the store is gone
            self._first = self._first or GONE
        self._left.set()
        if not self._done.wait(GRACE):
            print(f"guardlit: error: {self._first or 'the end took too long'}", file=sys.stderr, flush=True)
            os._exit(FAILED)

    def _look(self) -> None:
        if not self._first and self._store.check(["first"]):
            self._first = self._store.get("first").decode()
            self._store.set(f"seen/{self._rank}", "")

    # the end ------------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others at once of an error that they do not have, before anything here waits for them."""
        if self._store is not None and not is_on_all_ranks(exception) and not is_connection_loss(exception):
            self._tell(exception)

    def _tell(self, error: BaseException) -> None:
        line = f"process {self._rank}: {one_line(error)}"
        try:
            self._first = self._first or self._store.compare_set("first", "", line).decode()
        except RuntimeError:  # the store is gone, and with it whoever could hear
            self._first = self._first or line

    def _verdict(self, error: Exception) -> Exception:
        """What this process has to say of the error that ends it.

        Args:
            error: that reached the top of the program.

        Returns:
            The error itself, or, where it says no more than that another process is gone or late, an error that
            names that one and why it ended.
        """
        if self._store is None and isinstance(error, dist.DistError):
            return GuardlitError(f"the processes of this run did not find each other: {one_line(error)}")
        if self._store is None or is_on_all_ranks(error):
            return error
        if not is_connection_loss(error):
            self._tell(error)
            return error
        try:
            late = self._first or self._late(error)
        except RuntimeError:
            late = GONE
        told = self._first not in ("", GONE)
        verdict = OtherRankError(f"ended because another process did: {self._first}" if told else late)
        self._tell(verdict)
        return verdict

    def _late(self, error: Exception) -> str:
        """Who is missing; nothing where one has told its error by now."""
        before = self._beats()
        self._look()
        if not self._first and not any(child.poll() for child in self._children):
            self._done.wait(3 * BEAT)
            self._look()
        now = self._beats()
        dead = [rank for rank, child in enumerate(self._children, 1) if child.poll()]
        late = dead or [rank for rank in now if now[rank][0] == before[rank][0]]
        how = "is dead, stopped or cut off"
        if not late:
            least = min(int(steps) for _, steps, _ in now.values())
            late, how = [rank for rank, (_, steps, _) in now.items() if int(steps) == least], "has come least far"
        who = " ".join(f"process {rank}, last at {now[rank][2]}," for rank in late)
        call = traceback.extract_tb(error.__traceback__)[-1].name
        text = f"{who} {how}: {call} of process {self._rank} at {self._place} failed ({one_line(error)})"
        if re.search("timed? ?out", str(error), re.IGNORECASE):
            text += f"; the limit is the strategy's `timeout`, {getattr(self._strategy, '_timeout', None)}"
        return text

    @property
    def _children(self) -> list[subprocess.Popen[bytes]]:
        """Processes 1, 2, ... where Lightning started them from this one."""
        return getattr(self._strategy.launcher, "procs", [])

    @property
    def _strategy(self) -> Any:
        assert self._trainer is not None
        return self._trainer.strategy

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End together: a good end waits for the others', a bad one is explained to them."""
        try:
            yield
            self._meet()
        except Exception as error:
            if is_on_all_ranks(error):
                with suppress(RuntimeError):  # somebody died since: why all end is known
                    self._meet()
            told = self._verdict(error)
            if told is error:
                raise
            raise told from error
        finally:
            self._close()

    def _meet(self) -> None:
        """From here on nobody misses another."""
        if self._store is not None and self._trainer is not None:
            largest(self._trainer, 0)
            self._done.set()
            self._leave_store()
            self._store = None  # the next run of this Trainer has its own

    def _leave_store(self) -> None:
        """The interpreter's end aborts a process that has a thread in the store's C++ code."""
        self._over.set()
        self._left.wait(LINGER)

    def _close(self) -> None:
        """Let the others read why this process fails, and leave no process behind that it has started."""
        if self._store is None or self._done.is_set():
            return
        self._leave_store()
        keeps_store = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        until = time.monotonic() + LINGER
        heard = [f"seen/{rank}" for rank in range(1, self._world)]
        while keeps_store and not self._store.check(heard) and time.monotonic() < until:
            time.sleep(BEAT / 10)
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)


@contextmanager
def report_to_launcher() -> Iterator[None]:
    """Hand the error that ends this process to torchrun, whose report is the end of a log and else names none."""
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, OtherRankError):
            _record(error)
        raise


def _record(error: Exception) -> None:
    # the handler writes down where the error in hand was raised: for what is meant for the user, that is here
    try:
        if isinstance(error, GuardlitError) or is_on_all_ranks(error):
            raise type(error).__new__(type(error), str(error)) from None
        raise error
    except Exception as shown:
        get_error_handler().record_exception(shown)


def is_on_all_ranks(error: BaseException) -> bool:
    """Whether all processes have this error, or this reason to end."""
    return bool(getattr(error, "on_all_ranks", False))


def is_connection_loss(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone or late."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and bool(_LOST.search(str(error))))


def one_line(error: BaseException) -> str:
    """An error's kind, unless it is the user's mistake, and the first line of its message."""
    said = str(error).strip().partition("\n")[0][:500]
    kind = "" if isinstance(error, GuardlitError) else type(error).__name__
    return ": ".join(part for part in (kind, said) if part)
