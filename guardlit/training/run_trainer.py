"""Lightning's Trainer with what every run has, from a script or the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import lightning.pytorch as pl

from guardlit.checkpoints.discovery import newest_intact
from guardlit.config.library_errors import as_one_line, user_errors
from guardlit.devices.float32 import allow_tf32
from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.lightning_internals import (
    after_setup_environment,
    close_only_complete_epochs,
    log_at_global_step,
    validate_last_round,
)
from guardlit.processes.rank_errors import report_to_launcher
from guardlit.processes.shutdown import release_resources
from guardlit.processes.watchdog import RankWatchdog
from guardlit.training.ddp import keep_buffers, sync_gradients
from guardlit.training.defaults import complete
from guardlit.training.folder_trainer import FolderTrainer
from guardlit.training.limits.arguments import check_arguments, check_data
from guardlit.training.quiet import quiet_libraries
from guardlit.training.recovery.partial_round import save_partial_round
from guardlit.training.recovery.restart import restart_checkpoint
from guardlit.training.recovery.signals import Interrupted

P = ParamSpec("P")
T = TypeVar("T")


def command(method: Callable[P, T]) -> Callable[P, T]:
    """Give a method of the Trainer the exits of a run, and let its `ckpt_path="last"` mean the newest intact one."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        trainer = cast("RunTrainer", args[0])
        if kwargs.get("ckpt_path") == "last":
            kwargs["ckpt_path"] = str(newest_intact(Path(trainer.default_root_dir)))
        with trainer.exits(cast("pl.LightningModule", kwargs.get("model", (*args, None)[1]))):
            return method(*args, **kwargs)

    return run


class RunTrainer(FolderTrainer):
    """Lightning's Trainer with a run's defaults and exits: the base of `guardlit.Trainer`.

    A script that calls `fit` and `guardlit fit` with the same settings are the same run. Unless an argument says
    otherwise, a run has the `guardlit.training.defaults`: arguments such as `gradient_clip_val=1.0`,
    checkpoints of the two newest rounds, verified checkpoint files, one line of progress, `interrupted.ckpt` on a
    signal, and TensorBoard logs. All of a run is in one folder, which also describes it (see `FolderTrainer`).

    Args:
        tf32: whether products and convolutions of float32 may round their factors to TF32's 11 bits, on GPUs since
            Ampere; for the whole process. false by default, since torch's own is true for convolutions: a policy's
            VAE and patch embedding are float32 by promise, and log ratios lie between 1e-6 and 1e-4. In half precision
            little but the VAE is float32: its `decode_dtype` is the faster way there. null leaves torch's switches
            as they are.
        kwargs: of Lightning's Trainer.
    """

    def __init__(self, *, tf32: bool | None = False, **kwargs: Any) -> None:
        quiet_libraries()
        if tf32 is not None:
            allow_tf32(tf32)
        self._active, self._open_round = False, False
        self.interrupted_checkpoint: Path | None = None
        self._watchdog = RankWatchdog()
        complete(kwargs)
        check_arguments(kwargs)
        kwargs["callbacks"].insert(0, self._watchdog)  # it hears of an error before all others
        with as_one_line("trainer"):
            super().__init__(**kwargs)
        log_at_global_step(self)
        close_only_complete_epochs(self, self._leave_round_open)
        keep_buffers(self.strategy)
        sync_gradients(self.strategy, kwargs["callbacks"])
        self._watchdog.attach(self)
        after_setup_environment(self.strategy, self.open_folder)
        validate_last_round(self)

    def _leave_round_open(self) -> None:
        self._open_round = True
        self.interrupted_checkpoint = save_partial_round(self)

    @contextmanager
    def exits(self, model: pl.LightningModule) -> Iterator[None]:
        """Handle the exits of a run: release resources, explain errors to other ranks and to the user.

        A signal that stopped the run exits with 128 + its number, as shells report it. Nested calls do nothing.

        Args:
            model: whose reward is closed.
        """
        if self._active:
            yield
            return
        self._active = True
        try:
            with user_errors():
                try:
                    with report_to_launcher(), self._watchdog.supervise():
                        yield
                finally:  # Lightning calls no `teardown` after an exception
                    self._active = False
                    release_resources(self, model)
        except Interrupted as stop:
            print(f"guardlit fit: {stop}", file=sys.stderr)
            raise SystemExit(128 + stop.signum) from None

    validate = command(pl.Trainer.validate)
    test = command(pl.Trainer.test)
    predict = command(pl.Trainer.predict)

    @command
    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, and restart from a good checkpoint for as long as a `Rollback` among the callbacks says so.

        Args:
            model: of the configuration.
            train_dataloaders: refused: the data module has the rounds.
            val_dataloaders: refused.
            datamodule: the prompts.
            ckpt_path: a checkpoint to resume from; `last` for the newest intact one below `default_root_dir`.
            weights_only: not used: a checkpoint never executes anything.
        """
        check_data(datamodule, train_dataloaders, val_dataloaders)
        if self._open_round and ckpt_path is None:
            kept = self.interrupted_checkpoint is not None
            cure = (
                "give ckpt_path='last' to resume it" if kept else "it kept no checkpoint to resume; make a new Trainer"
            )
            raise GuardlitError(f"the last fit of this Trainer stopped within a round: {cure}")
        self._open_round, self.interrupted_checkpoint = False, None
        while True:
            try:
                return super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)
            except NonFiniteError as error:
                ckpt_path = restart_checkpoint(self, error)
