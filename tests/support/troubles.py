"""Callbacks that fail or stop a run at one place in it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

Error = Literal["raise", "memory", "user error"]
Sleep = Literal["sleep", "sleep and raise"]
Signal = Literal["SIGKILL", "SIGSTOP", "SIGTERM", "SIGTERM twice", "SIGUSR1", "SIGHUP", "SIGINT", "SIGINT twice"]

Hook = Literal["on_train_batch_start", "on_train_batch_end", "on_train_epoch_start"]


class Trouble(pl.Callback):
    """Fails the first time that the run is at the place.

    Args:
        what: raise what a library might, a lack of memory, or a `GuardlitError`; send a signal to this process; sleep;
            or sleep while the other rank raises.
        place: `setup`, `batch` for the end of a micro-batch, `validation` for a batch of validation images, `first
            validation` for one of those at step 0, or a phase.
        at: index of the micro-batch or batch, or steps of a phase that are done.
        rank: that fails.
        marker: a file that is created just before.
    """

    def __init__(
        self, what: Error | Sleep | Signal, place: str, at: int = 0, rank: int = 1, marker: str | None = None
    ) -> None:
        self.what, self.place, self.at, self.rank, self.marker = what, place, at, rank, marker
        self.done = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._come(trainer, "setup", 0)

    def on_phase(self, trainer: pl.Trainer, phase: str, done: int, total: int) -> None:
        self._come(trainer, phase, done)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        self._come(trainer, "batch", args[2])

    def on_validation_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        self._come(trainer, "validation" if trainer.global_step else "first validation", args[1])

    def _come(self, trainer: pl.Trainer, place: str, at: int) -> None:
        if self.done or (place, at) != (self.place, self.at):
            return
        if trainer.global_rank != self.rank:
            if self.what == "sleep and raise":
                raise RuntimeError("the wires are cut")
            return
        self.done = True
        if self.marker is not None:
            Path(self.marker).touch()
        self._do()

    def _do(self) -> None:
        if self.what == "raise":
            raise RuntimeError("the wires are cut\nand more lines")
        if self.what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.what == "user error":
            from guardlit.errors import GuardlitError

            raise GuardlitError("the prompt file is gone")
        if self.what.startswith("sleep"):
            while True:
                time.sleep(3600)
        name, *twice = self.what.split()
        for _ in range(1 + len(twice)):
            os.kill(os.getpid(), getattr(signal, name))


class Stop(pl.Callback):
    """Sets `should_stop` once, or raises KeyboardInterrupt.

    Args:
        place: a hook.
        at: calls of it before that.
        rank: where.
        interrupt: whether to raise.
    """

    def __init__(self, place: Hook, at: int, rank: int = 0, interrupt: bool = False) -> None:
        self.left, self.rank, self.interrupt = at, rank, interrupt
        setattr(self, place, self._count)

    def _count(self, trainer: pl.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left != -1 or trainer.global_rank != self.rank:
            return
        if self.interrupt:
            raise KeyboardInterrupt
        trainer.should_stop = True


class SaveAtStart(pl.Callback):
    """Saves a checkpoint at the start of a micro-batch of a round.

    Args:
        batch: index of the micro-batch.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Save."""
        if args[1] == self.batch:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "here.ckpt")
