"""W&B's runs: started before anything loads, in the run's folder, and with one line where that is impossible."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from guardlit.errors import GuardlitError
from guardlit.processes.lightning_internals import wandb_arguments

NO_KEY = (
    "W&B has no API key here: run `wandb login`, set WANDB_API_KEY, or keep the run on this machine by "
    "WANDB_MODE=offline or --trainer.logger.offline true"
)
OFFLINE = ("offline", "dryrun", "disabled")
"""Modes that need no account: of the logger's arguments, of the environment, or by the command `wandb offline`."""


def check_wandb(loggers: Iterable[Logger]) -> GuardlitError | None:
    """What keeps the W&B loggers among some from starting on this machine, if anything; call it on rank 0."""
    return _first_problem(loggers, _check)


def start_wandb(loggers: Iterable[Logger], folder: Path) -> GuardlitError | None:
    """Start the W&B runs of some loggers; call it on rank 0.

    Args:
        loggers: of any kind.
        folder: where W&B's files go unless a logger has a `save_dir`.

    Returns:
        What went wrong, if anything.
    """
    return _first_problem(loggers, partial(_start, folder))


def _first_problem(loggers: Iterable[Logger], act: Callable[[WandbLogger], str | None]) -> GuardlitError | None:
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            try:
                problem = act(logger)
            except import_module("wandb").errors.Error as error:
                problem = f"W&B: {' '.join(str(error).split())}"
            if problem is not None:
                return GuardlitError(f"trainer.logger: {problem}")
    return None


def _check(logger: WandbLogger) -> str | None:
    wandb: Any = import_module("wandb")
    arguments = wandb_arguments(logger)
    given = arguments.get("mode") or getattr(arguments.get("settings"), "mode", None)
    if wandb.run is not None or (given or wandb.setup().settings.mode) in OFFLINE:
        return None
    return None if wandb.login(prompt=False, verify=False) else NO_KEY


def _start(folder: Path, logger: WandbLogger) -> None:
    arguments = wandb_arguments(logger)
    if arguments.get("dir") in (None, "."):
        arguments["dir"] = str(folder)
    if arguments.get("anonymous") is None:  # W&B warns of it even so
        arguments.pop("anonymous", None)
    _ = logger.experiment
