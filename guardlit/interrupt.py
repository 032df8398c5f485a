"""Signals end a run with a checkpoint that it can go on from."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from guardlit.phases import Phase


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and did.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class SignalGuard(pl.Callback):
    """On SIGINT, SIGTERM or SIGUSR1: write `checkpoints/interrupted.ckpt` and stop, within one micro-batch.

    A second signal stops at once. The checkpoint holds the round in progress and the gradients accumulated so far, so
    that the resumed run is the undisturbed one, bit for bit.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._asked: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over the signals; before Lightning looks whether SIGTERM is taken."""
        if stage == "fit" and not self._previous:
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._ask)

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
        """During a rollout nothing of the round is kept: the checkpoint starts it again."""
        if phase != "update":
            self._stop_if_asked(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """After a micro-batch, its gradients are kept."""
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        # one process alone must not leave the others waiting in a collective
        asked = trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)
        if not asked:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        path = folder / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        signum = self._asked or signal.SIGTERM
        name = signal.Signals(signum).name
        raise Interrupted(f"stopped by {name} at update {trainer.global_step}; go on with --ckpt_path {path}", signum)
