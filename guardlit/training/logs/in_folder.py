"""The loggers that write into the run's own folder, by name, and the others that a Trainer may be given by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from guardlit.config.missing import EXTRAS
from guardlit.config.nearest import concrete_subclasses, import_class
from guardlit.config.replacing import LOGGERS
from guardlit.errors import GuardlitError, did_you_mean


class TensorBoard(DummyLogger):
    """Stands for TensorBoard's log in the run's folder, which a run has without `trainer.logger`; `tensorboard`."""


class CSV(DummyLogger):
    """Stands for `metrics.csv` in the run's folder, which every run has; in short, `csv`."""


def by_name(given: Any) -> Any:
    """The Trainer's argument `logger`, where a name such as `wandb` becomes the logger with its own defaults.

    Args:
        given: a logger, a name of `LOGGERS` or of a class of Lightning's, a list of them, a bool or None.

    Raises:
        GuardlitError: an unknown name, or a logger whose package is not installed.
    """
    if isinstance(given, str):
        return _make(given)
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
    classes = {cls.__name__: cls for cls in concrete_subclasses(Logger)}
    cls = import_class(LOGGERS[name]) if name in LOGGERS else classes.get(name)
    if cls is None:
        hint = did_you_mean(name, [*LOGGERS, *classes], "loggers are")
        raise GuardlitError(f"trainer.logger: {name!r} is no logger: {hint}")
    try:
        return cls()  # type: ignore[no-any-return]
    except TypeError as error:
        raise GuardlitError(
            f"trainer.logger: {cls.__name__} has no defaults ({error}); give one that is made"
        ) from error
    except ModuleNotFoundError as error:
        package = EXTRAS.get(cls.__name__, cls.__name__.removesuffix("Logger").lower())
        raise GuardlitError(
            f"trainer.logger: {cls.__name__} needs a package that is not installed: pip install {package}"
        ) from error
