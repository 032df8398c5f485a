"""A Trainer whose runs have a folder each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from guardlit_callbacks.tools.folders import new_folder
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.training.logs import in_folder
from guardlit.training.logs.metrics_file import MetricsFile
from guardlit.training.logs.wandb_runs import check_wandb, start_wandb

PREFIXES = {TrainerFn.FITTING: "version_", TrainerFn.VALIDATING: "validate_"}
"""Start of the folder's name, for the commands that have one."""


class FolderTrainer(pl.Trainer):
    """Lightning's Trainer with one new folder a run in `default_root_dir`, whatever the loggers.

    `fit` has `version_K` and `validate`, unless this Trainer has trained before, `validate_K`: other commands and
    rehearsals (`fast_dev_run`) have none. All that a run writes lies there: `log_dir` is this folder on every rank,
    checkpoints without a `dirpath` are in `checkpoints/`, and a CSVLogger writes `metrics.csv`. Without a logger among
    the arguments, or with the name `tensorboard`, `fit` also logs for TensorBoard. W&B's files are in `wandb/` unless
    its logger has a `save_dir`. Other loggers write where their own arguments say.

    `open_folder` must be called as soon as the ranks have connected.

    Args:
        kwargs: of Lightning's Trainer.
    """

    _folder: Path | None = None

    def __init__(self, **kwargs: Any) -> None:
        others, self._tensorboard = in_folder.split(kwargs.get("logger"))
        self._keeps_run = not kwargs.get("fast_dev_run")
        kwargs["logger"] = False if self._keeps_run and others in (None, True) else others  # the folder's own at `fit`
        super().__init__(**kwargs)
        self._given_loggers = list(self.loggers)
        self._own_loggers: list[Logger] = []
        self._movable: list[ModelCheckpoint] = []

    @property
    def log_dir(self) -> str | None:
        """The run's folder, the same on every rank; None for a command or a rehearsal that has none."""
        return None if self._folder is None else str(self._folder)

    def open_folder(self) -> None:
        """Make the folder of the run that starts, and let loggers and checkpoints write there. Collective."""
        self._movable += [c for c in self._checkpoints() if c.dirpath is None]
        self._given_loggers = [x for x in self.loggers if x not in self._own_loggers] or self._given_loggers
        fn = self.state.fn
        prefix = PREFIXES.get(fn) if fn is not None and self._keeps_run else None
        if prefix is None:
            self.loggers = []
            return
        self._raise_on_all(lambda: check_wandb(self._given_loggers))
        training = fn == TrainerFn.FITTING
        if self._folder is None or (training and not self._folder.name.startswith(prefix)):
            self._folder = self._new_folder(prefix)
            self._own_loggers = self._make_loggers(self._folder, training)
        self.loggers = [*self._given_loggers, *self._own_loggers]
        self._raise_on_all(lambda: start_wandb(self._given_loggers, Path(self.log_dir or ".")))
        for checkpoint in self._movable if training else ():
            checkpoint.dirpath = str(self._folder / "checkpoints")

    def _raise_on_all(self, act: Callable[[], GuardlitError | None]) -> None:
        """Act on rank 0, and raise on all ranks what is wrong there."""
        World.of(self).raise_on_all(act() if self.is_global_zero else None)

    def _checkpoints(self) -> list[ModelCheckpoint]:
        return [callback for callback in self.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]

    def _new_folder(self, prefix: str) -> Path:
        folder, error, root = None, None, Path(self.default_root_dir)
        if self.is_global_zero:
            try:
                folder = new_folder(root, prefix)
            except OSError as problem:
                error = GuardlitError(f"output folder {root} cannot be written: {problem.strerror}")
        world = World.of(self)
        world.raise_on_all(error)
        found = world.gather_objects(folder)[0]
        assert found is not None
        return found

    def _make_loggers(self, folder: Path, training: bool) -> list[Logger]:
        place = (folder.parent.parent, folder.parent.name, folder.name)
        csv = MetricsFile(*place)
        return [TensorBoardLogger(*place, default_hp_metric=False), csv] if self._tensorboard and training else [csv]
