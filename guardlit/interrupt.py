"""Signals, and rewards that fail, end a run with a checkpoint that it can go on from."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from guardlit.errors import GuardlitError, NumbersError
from guardlit.nonfinite import finite_weights
from guardlit.phases import Phase
from guardlit.rollback import Rollback


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and did.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class SignalGuard(pl.Callback):
    """On SIGINT, SIGTERM or SIGUSR1: write `checkpoints/interrupted.ckpt` and stop.

    It does so within one micro-batch or denoising step; a validation or the encoding of prompts is finished first. A
    second signal stops at once. The checkpoint holds the round in progress and the gradients accumulated so far, so
    that the resumed run is the undisturbed one, bit for bit.

    A `GuardlitError` while a round is collected, such as a reward server that is gone, also leaves that checkpoint; any
    other one may have to do with the weights, and is told with the last checkpoint that was written before it. Where
    numbers went wrong that is the last one whose weights are finite.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._asked: int | None = None
        self._collecting = False
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over the signals, so that one during loading is answered before the first image."""
        if stage == "fit" and not self._previous:
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._ask)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, which answers it too by now: it would end the run without a checkpoint."""
        signal.signal(signal.SIGTERM, self._ask)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt
        self._asked = signum

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Look between two denoising steps; the resumed run starts an unfinished rollout again."""
        self._collecting = self._collecting or phase == "encode"
        if phase != "update":
            self._look(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        """The round is collected."""
        self._collecting = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Look after a micro-batch, whose gradients are kept."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        # one process alone must not leave the others waiting in a collective
        if trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False):
            signum = self._asked or signal.SIGTERM
            where = f"stopped by {signal.Signals(signum).name} at update {trainer.global_step}"
            raise Interrupted(f"{where}; go on with --ckpt_path {_path(trainer)}", signum)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save only now: a rollout has left the old policy's weights by its own way out."""
        if isinstance(exception, Interrupted):
            trainer.save_checkpoint(_path(trainer))
        elif isinstance(exception, GuardlitError) and trainer.global_step > 0:
            numbers = isinstance(exception, NumbersError)
            if numbers and any(isinstance(c, Rollback) for c in trainer.callbacks):  # type: ignore[attr-defined]
                return  # which has its own checkpoints
            if self._collecting and not numbers:  # by all processes together
                trainer.save_checkpoint(_path(trainer))
                exception.args = (f"{exception}; go on with --ckpt_path {_path(trainer)}",)
            elif (last := _last_written(trainer, finite=numbers)) is not None:
                exception.args = (f"{exception}; the last good checkpoint is {last}",)


def _path(trainer: pl.Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "interrupted.ckpt"


def _last_written(trainer: pl.Trainer, finite: bool) -> Path | None:
    """The newest checkpoint of this run or what it was resumed from, if need be the newest with `finite` weights."""
    keepers = trainer.checkpoint_callbacks
    folders = {Path(folder) for k in keepers if (folder := getattr(k, "dirpath", None))}
    written = [*(path for folder in folders for path in folder.glob("*.ckpt")), Path(trainer.ckpt_path or "")]
    written = [path for path in written if path.is_file()]
    written.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in written if not finite or finite_weights(path)), None)
