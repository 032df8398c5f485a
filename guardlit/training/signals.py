"""Signals, and rewards that fail, end a run with a checkpoint that it can go on from."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from guardlit.checkpoints.finite import finite_weights
from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.collectives import largest
from guardlit.processes.lightning_internals import repeat_validation, reset_validation_progress
from guardlit.processes.phases import Phase
from guardlit.processes.slurm import forget, requeue, requeue_signal
from guardlit.processes.watchdog import is_on_all_ranks
from guardlit.training.rollback import Rollback


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and did, on all processes at the same point.

    Attributes:
        signum: the signal that asked.
    """

    on_all_ranks = True

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class SignalGuard(pl.Callback):
    """On SIGINT, SIGTERM or SIGUSR1: write `checkpoints/interrupted.ckpt` and stop.

    It does so within one micro-batch, denoising step or batch of validation images; the encoding of prompts is finished
    first. A second SIGINT stops at once; schedulers repeat the others, which changes nothing. The checkpoint holds the
    round in progress and the gradients accumulated so far, so that the resumed run is the undisturbed one, bit for bit;
    a validation that was cut short comes again before anything else.

    On SLURM, Lightning's requeue signal also has the job queued again (`SLURMEnvironment(auto_requeue=...)`).

    A `GuardlitError` while a round is collected, such as a reward server that is gone, also leaves that checkpoint; any
    other one may have to do with the weights, and is told with the last checkpoint that was written before it. Where
    numbers went wrong that is the last one whose weights are finite.

    Must come after the callbacks that have a state of their own: it ends a micro-batch once they have seen it.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._asked = 0
        self._collecting = False
        self._common_batches = 0
        self._validation_due = False
        self._requeue_signal: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take over the signals, so that one during loading is answered before the first image."""
        if stage == "fit" and not self._previous:
            self._requeue_signal = requeue_signal(trainer)
            for number in {*self.SIGNALS, *filter(None, [self._requeue_signal])}:
                self._previous[number] = signal.signal(number, self._ask)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM back from Lightning, which answers it too by now: it would end the run without a checkpoint."""
        signal.signal(signal.SIGTERM, self._ask)
        # Lightning asks at every micro-batch whether it has got one, and so has every GPU wait
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if self._validation_due:
            repeat_validation(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to go on from."""
        forget(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        self.close()

    def close(self) -> None:
        """Give the signals back, also where Lightning calls no `teardown`: after an exception."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = self._asked or signum

    # places to stop at --------------------------------------------------------------------------------------------

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Look between two denoising steps; the resumed run starts an unfinished rollout again."""
        self._collecting = self._collecting or phase == "encode"
        if phase != "update":
            self._look(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        """The round is collected."""
        self._collecting = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after a micro-batch, whose gradients are kept; after a round's last one once the round is logged."""
        if batch_idx + 1 < trainer.num_training_batches:
            self._look(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find how many batches every process has: one may have one less than another."""
        mine = 0 if trainer.sanity_checking else int(sum(trainer.num_val_batches))
        self._common_batches = -largest(trainer, -mine)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look before a batch of validation images; the resumed run starts the validation again."""
        if batch_idx < self._common_batches:
            self._validation_due = trainer.global_step > 0  # at step 0 it comes anyway
            self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It is done."""
        self._validation_due = False

    def _look(self, trainer: pl.Trainer) -> None:
        # one process alone must not leave the others waiting in a collective
        if signum := largest(trainer, self._asked):
            where = f"stopped by {signal.Signals(signum).name} at update {trainer.global_step}"
            raise Interrupted(f"{where}; resume with --ckpt_path {_path(trainer)}", signum)

    # the end ------------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save only now: a rollout has left the old policy's weights by its own way out."""
        if isinstance(exception, Interrupted):
            self._save(trainer, pl_module)
            if exception.signum == self._requeue_signal:
                requeue(trainer, _path(trainer))
        elif isinstance(exception, GuardlitError) and trainer.global_step > 0:
            numbers = isinstance(exception, NonFiniteError)
            if numbers and any(isinstance(c, Rollback) for c in trainer.callbacks):  # type: ignore[attr-defined]
                return  # which has its own checkpoints
            if self._collecting and not numbers and (is_on_all_ranks(exception) or trainer.world_size == 1):
                trainer.save_checkpoint(_path(trainer))
                exception.args = (f"{exception}; resume with --ckpt_path {_path(trainer)}",)
            elif (last := _last_written(trainer, finite=numbers)) is not None:
                exception.args = (f"{exception}; the last good checkpoint is {last}",)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validation_due:
            reset_validation_progress(trainer)
            if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                # the round is over but for its validation, and will not be logged by the run that goes on
                here = dict.fromkeys(("round", "epoch"), float(trainer.current_epoch))
                for logger in trainer.loggers:
                    logger.log_metrics(pl_module.round_metrics | here, trainer.global_step - 1)  # type: ignore[operator]
        trainer.save_checkpoint(_path(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation was cut short."""
        return {"validation_due": True} if self._validation_due else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Validate before anything else where one was cut short."""
        self._validation_due = state_dict.get("validation_due", False)


def _path(trainer: pl.Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "interrupted.ckpt"


def _last_written(trainer: pl.Trainer, finite: bool) -> Path | None:
    """The newest checkpoint of this run or what it was resumed from, if need be the newest with `finite` weights."""
    keepers = trainer.checkpoint_callbacks
    folders = {Path(folder) for k in keepers if (folder := getattr(k, "dirpath", None))}
    written = [*(path for folder in folders for path in folder.glob("*.ckpt")), Path(trainer.ckpt_path or "")]
    written = [path for path in written if path.suffix == ".ckpt" and path.exists()]
    written.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in written if not finite or finite_weights(path)), None)
