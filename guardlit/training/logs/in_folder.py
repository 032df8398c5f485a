"""The loggers that write into the run's own folder, by name, and the others that a Trainer may be given by name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from guardlit.config.replacing import LOGGERS
from guardlit.errors import GuardlitError


class TensorBoard(DummyLogger):
    """Stands for TensorBoard's log in the run's folder, which a run has without `trainer.logger`; `tensorboard`."""


class CSV(DummyLogger):
    """Stands for `metrics.csv` in the run's folder, which every run has; in short, `csv`."""


def by_name(given: Any) -> Any:
    """The Trainer's argument `logger`, where a name such as `wandb` becomes the logger with its own defaults.

    Args:
        given: a logger, a name, a list of them, a bool or None.

    Raises:
        GuardlitError: a logger whose package is not installed.
    """
    if isinstance(given, str):
        return _make(given) if given in LOGGERS else given
    if isinstance(given, Iterable):
        return [by_name(item) for item in given]
    return given


def split(given: Any) -> tuple[Any, bool]:
    """The Trainer's argument `logger` without those that stand for the folder's own, and whether TensorBoard is one.

    Args:
        given: a logger, a list of them, a bool or None, which stands for TensorBoard, as true does.
    """
    if given is None or isinstance(given, bool):
        return given, given is not False
    listed = list(given) if isinstance(given, Iterable) else [given]
    others = [logger for logger in listed if not isinstance(logger, TensorBoard | CSV)]
    return others or False, any(isinstance(logger, TensorBoard) for logger in listed)


def _make(name: str) -> Logger:
    module, _, cls = LOGGERS[name].rpartition(".")
    try:
        made: Logger = getattr(import_module(module), cls)()
    except ModuleNotFoundError as error:
        raise GuardlitError(f"trainer.logger: {name} needs a package that is not installed: {error}") from error
    return made
