"""Saves and stops a run on a signal or a failing reward."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from guardlit.checkpoints.discovery import checkpoints_in
from guardlit.checkpoints.finite import finite_weights
from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes import lightning_internals as internals
from guardlit.processes.phases import Phase
from guardlit.processes.rank_errors import is_on_all_ranks
from guardlit.processes.slurm import remove_requeue_checkpoint, requeue, requeue_signal
from guardlit.processes.world import World
from guardlit.training.recovery.partial_round import interrupted_path


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal stopped the run, on every rank at the same point.

    Attributes:
        signum: the signal.
    """

    on_all_ranks = True

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class SignalGuard(pl.Callback):
    """On SIGINT, SIGTERM or SIGUSR1: write `checkpoints/interrupted.ckpt` and stop.

    The run stops within one micro-batch, denoising step or batch of validation images; the encoding of prompts is
    finished first. A second SIGINT stops at once, and so does a KeyboardInterrupt that a callback raises: the run then
    resumes from the last checkpoint. Schedulers repeat the other signals, which changes nothing. The
    checkpoint holds the round in progress and the gradients accumulated so far, so that the resumed run equals the
    undisturbed one bit for bit. A validation that was cut short is repeated first.

    On SLURM, Lightning's requeue signal also requeues the job (`SLURMEnvironment(auto_requeue=...)`).

    A `GuardlitError` while a round is collected, such as a reward server that is gone, also writes that checkpoint. Any
    other one may be due to the weights: its message names the last checkpoint before it or, for a `NonFiniteError`, the
    last one with finite weights. A callback with `keeps_own_checkpoints = True` answers a `NonFiniteError` itself.

    It must come after the callbacks that keep a state: it ends a micro-batch after their hooks.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received = 0
        self._collecting = False
        self._common_batches = 0
        self._validation_due = False
        self._requeue_signal: int | None = None
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Install the signal handlers, so that a signal during loading takes effect before the first image."""
        if stage == "fit" and not self._previous:
            self._requeue_signal = requeue_signal(trainer)
            for number in {*self.SIGNALS, *filter(None, [self._requeue_signal])}:
                self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's handler of SIGTERM, which would end the run without a checkpoint."""
        signal.signal(signal.SIGTERM, self._on_signal)
        internals.disable_sigterm_broadcast(trainer)
        if self._validation_due:
            internals.repeat_validation(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The run is finished: remove what a requeued job would resume from."""
        remove_requeue_checkpoint(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the previous signal handlers."""
        self.close()

    def close(self) -> None:
        """Restore the previous signal handlers, also after an exception, where Lightning calls no `teardown`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or signum

    # where the run can stop ---------------------------------------------------------------------------------------

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Check between two denoising steps; the resumed run repeats an unfinished rollout."""
        self._collecting = self._collecting or phase == "encode"
        if phase != "update":
            self._check_signal(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        """The round is collected."""
        self._collecting = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check after a micro-batch, whose gradients are kept; after a round's last one once the round is logged."""
        if batch_idx + 1 < trainer.num_training_batches:
            self._check_signal(trainer)
        else:
            self._agree(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find how many batches every rank has: one may have one less than another."""
        own = 0 if trainer.sanity_checking else int(sum(trainer.num_val_batches))
        self._common_batches = -World.of(trainer).largest(-own)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Check before a batch of validation images; the resumed run repeats the validation."""
        if batch_idx < self._common_batches:
            self._validation_due = trainer.global_step > 0  # at step 0 it is due anyway
            self._check_signal(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The validation is complete."""
        self._validation_due = False

    def _check_signal(self, trainer: pl.Trainer) -> None:
        if signum := self._agree(trainer):
            where = f"stopped by {signal.Signals(signum).name} at update {trainer.global_step}"
            raise Interrupted(f"{where}; resume with --ckpt_path {interrupted_path(trainer)}", signum)

    def _agree(self, trainer: pl.Trainer) -> int:
        """The signal that some rank has received; `should_stop` of one rank is that of all. Collective."""
        # one rank alone must not leave the others waiting in a collective
        signum, stop = divmod(World.of(trainer).largest(2 * self._received + trainer.should_stop), 2)
        trainer.should_stop = bool(stop) or trainer.should_stop
        return signum

    # the exit -----------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save only now, when a rollout has put the trained weights back in place of the old policy's."""
        if isinstance(exception, Interrupted):
            self._save(trainer, pl_module)
            if exception.signum == self._requeue_signal:
                requeue(trainer, interrupted_path(trainer))
        elif isinstance(exception, KeyboardInterrupt):
            self._report(trainer)
        elif isinstance(exception, GuardlitError) and trainer.global_step > 0:
            numbers = isinstance(exception, NonFiniteError)
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            if numbers and any(getattr(c, "keeps_own_checkpoints", False) for c in callbacks):
                return
            if self._collecting and not numbers and (is_on_all_ranks(exception) or trainer.world_size == 1):
                trainer.save_checkpoint(interrupted_path(trainer))
                exception.args = (f"{exception}; resume with --ckpt_path {interrupted_path(trainer)}",)
            elif (last := _last_written(trainer, finite=numbers)) is not None:
                exception.args = (f"{exception}; the last good checkpoint is {last}",)

    def _report(self, trainer: pl.Trainer) -> None:
        """Say where a run that a KeyboardInterrupt ended can be resumed; one that no signal caused saves a rollout."""
        if self._collecting and not self._received and trainer.world_size == 1:
            trainer.save_checkpoint(interrupted_path(trainer))
        if trainer.global_rank == 0 and (last := _last_written(trainer, finite=False)) is not None:
            print(f"interrupted at update {trainer.global_step}; resume with --ckpt_path {last}", file=sys.stderr)

    def _save(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validation_due:
            internals.reset_validation_progress(trainer)
            if internals.is_last_batch(trainer):
                # the round is complete but for its validation, and the resumed run will not log it
                here = {"round": float(trainer.current_epoch + 1), "epoch": float(trainer.current_epoch)}
                for logger in trainer.loggers:
                    logger.log_metrics(pl_module.round_metrics | here, trainer.global_step)  # type: ignore[operator]
        trainer.save_checkpoint(interrupted_path(trainer))

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation was cut short."""
        return {"validation_due": True} if self._validation_due else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Repeat a validation that was cut short."""
        self._validation_due = state_dict.get("validation_due", False)


def _last_written(trainer: pl.Trainer, finite: bool) -> Path | None:
    """The newest checkpoint of this run or the one it resumed from; with `finite`, the newest with finite weights."""
    keepers = trainer.checkpoint_callbacks
    folders = {Path(folder) for k in keepers if (folder := getattr(k, "dirpath", None))}
    written = [*(path for folder in folders for path in checkpoints_in(folder)), Path(trainer.ckpt_path or "")]
    written = [path for path in written if path.suffix == ".ckpt" and path.exists()]
    written.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in written if not finite or finite_weights(path)), None)
