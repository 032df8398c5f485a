"""Stops every rank of a run where one fails, and names the rank and its error on all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch.distributed as dist

from guardlit.errors import GuardlitError
from guardlit.processes.lightning_internals import after_setup_environment, child_processes
from guardlit.processes.phases import Phase
from guardlit.processes.rank_errors import OtherRankError, is_connection_loss, is_on_all_ranks, is_timeout, one_line
from guardlit.processes.rank_store import RankStore, missing_ranks
from guardlit.processes.world import World

HEARTBEAT_INTERVAL = 1.0  # seconds
GRACE_PERIOD = 20.0
"""Seconds in which a rank may exit by itself once one has failed; then its watchdog ends it."""
READ_PERIOD = 5.0
"""Seconds for which a failed rank that hosts the store waits for the others to read its error."""
EXIT_CODE = 1
STORE_LOST = "rank 0 or torchrun is gone, which hosts the store that connects the ranks"


class RankWatchdog(pl.Callback):
    """Stops every rank of a run where one fails; each rank's last line says which one failed, and why.

    A rank that raises alone would leave the others waiting in a collective. So it publishes its error at once, in the
    store by which the ranks connected; a thread of every rank watches for it, and ends the process where it does not
    exit by itself, as in a collective on a GPU. An error that only reports a lost connection is replaced by the
    published one, or by the name of the rank that is silent or furthest behind.

    Does nothing in a run of one rank.
    """

    _runs: ClassVar[int] = 0

    def __init__(self) -> None:
        self._store: RankStore | None = None
        self._world = World.single()
        self._children: Sequence[subprocess.Popen[bytes]] = ()
        self._place, self._steps = "the start", 0
        self._reset()

    def _reset(self) -> None:
        self._first_error = ""
        self._stop, self._stopped, self._finished = Event(), Event(), Event()

    # the watch ----------------------------------------------------------------------------------------------------

    def attach(self, trainer: pl.Trainer) -> None:
        """Start with the Trainer's run, as soon as the ranks have connected, which is before any hook."""

        def start() -> None:
            if trainer.world_size > 1 and self._store is None:
                self.start(World.of(trainer), child_processes(trainer.strategy))

        after_setup_environment(trainer.strategy, start)

    def start(self, world: World, children: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """Start the watch. Collective: every rank must call it.

        Args:
            world: of the run, of several ranks.
            children: ranks 1, 2, ... where this process started them.
        """
        RankWatchdog._runs += 1
        self._reset()
        self._world, self._children = world, children
        self._store = RankStore.connect(RankWatchdog._runs, world.rank, world.size)
        self._store.beat(self._steps, self._place)
        world.largest(0)  # now every rank has a heartbeat
        Thread(target=self._watch, args=(self._store,), name="rank watchdog", daemon=True).start()

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Note the place in the run."""
        self._pass(f"{phase} {done} of {total}")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note the place in the run."""
        self._pass(f"validation batch {batch_idx}")

    def _pass(self, place: str) -> None:
        self._place, self._steps = place, self._steps + 1

    def _watch(self, store: RankStore) -> None:
        try:
            while not self._first_error and not self._stop.wait(HEARTBEAT_INTERVAL):
                store.beat(self._steps, self._place)
                self._first_error = self._first_error or store.first_error()
        except RuntimeError:
            self._first_error = self._first_error or STORE_LOST
        self._stopped.set()
        if not self._finished.wait(GRACE_PERIOD):
            print(f"guardlit: error: {self._first_error or 'shutdown took too long'}", file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)

    # the exit -----------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Publish an error of this rank alone at once, before anything here waits for the other ranks."""
        if self._store is not None and not is_on_all_ranks(exception) and not is_connection_loss(exception):
            self._publish(self._store, exception)

    @contextmanager
    def supervise(self) -> Iterator[None]:
        """On success, wait for the other ranks; on failure, publish the error, and explain one that another caused."""
        try:
            yield
            self._finish()
        except Exception as error:
            if is_on_all_ranks(error):
                with suppress(RuntimeError):  # a rank died since; every rank has its reason
                    self._finish()
            explained = self._explain(error)
            if explained is error:
                raise
            raise explained from error
        finally:
            self._shut_down()

    def _publish(self, store: RankStore, error: BaseException) -> None:
        line = f"rank {self._world.rank}: {one_line(error)}"
        try:
            self._first_error = self._first_error or store.publish(line)
        except RuntimeError:  # the store is gone, and with it every reader
            self._first_error = self._first_error or line

    def _explain(self, error: Exception) -> Exception:
        """The error itself or, for one that only reports a lost connection, an error that names rank and cause."""
        store = self._store
        if store is None and isinstance(error, dist.DistError):
            return GuardlitError(f"the ranks of this run did not connect: {one_line(error)}")
        if store is None or is_on_all_ranks(error):
            return error
        if not is_connection_loss(error):
            self._publish(store, error)
            return error
        try:
            cause = self._first_error or self._find_cause(store, error)
        except RuntimeError:
            cause = STORE_LOST
        if self._first_error not in ("", STORE_LOST):
            cause = f"stopped because another rank failed: {self._first_error}"
        explained = OtherRankError(cause)
        self._publish(store, explained)
        return explained

    def _find_cause(self, store: RankStore, error: Exception) -> str:
        """The first error, if a rank publishes one by now, or which ranks are missing."""
        before = store.heartbeats()
        self._first_error = self._first_error or store.first_error()
        if not self._first_error and not any(child.poll() for child in self._children):
            self._finished.wait(3 * HEARTBEAT_INTERVAL)
            self._first_error = self._first_error or store.first_error()
        dead = [rank for rank, child in enumerate(self._children, 1) if child.poll()]
        call = traceback.extract_tb(error.__traceback__)[-1].name
        here = f"{call} of rank {self._world.rank} at {self._place} failed ({one_line(error)})"
        limit = f"; the limit is the strategy's `timeout`, {self._world.timeout}" if is_timeout(error) else ""
        return f"{missing_ranks(before, store.heartbeats(), dead)}: {here}{limit}"

    def _finish(self) -> None:
        """Wait until every rank is here; from now on none misses another. Collective."""
        if self._store is not None:
            self._world.largest(0)
            self._finished.set()
            self._stop_watch()
            self._store = None  # the next run has another

    def _stop_watch(self) -> None:
        """End the thread: the interpreter's exit aborts a process that has a thread in the store's C++ code."""
        self._stop.set()
        self._stopped.wait(READ_PERIOD)

    def _shut_down(self) -> None:
        """After a failure, let the other ranks read the error, and end the processes that this one started."""
        if self._store is None or self._finished.is_set():
            return
        self._stop_watch()
        self._store.wait_for_readers(READ_PERIOD)
        for child in self._children:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
