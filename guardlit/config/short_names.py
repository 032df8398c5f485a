"""Short names of loggers: `--trainer.logger wandb`, or `logger: [wandb, tensorboard]` in YAML.

jsonargparse finds a class by its own name only, such as `WandbLogger`.
"""

from __future__ import annotations

from typing import Any

from jsonargparse import _typehints
from lightning.pytorch.loggers import Logger

from guardlit.config.nearest import concrete_subclasses, nearest

LOGGERS = {
    "tensorboard": "guardlit.training.logs.in_folder.TensorBoard",
    "csv": "guardlit.training.logs.in_folder.CSV",
    "wandb": "lightning.pytorch.loggers.WandbLogger",
    "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
}
"""Short name -> import path of the class."""


def resolve(cls: Any, name: str) -> str:
    """As jsonargparse's, where a logger may have a short name; takes its place."""
    wanted = cls if isinstance(cls, tuple) else (cls,)
    return LOGGERS[name] if name in LOGGERS and Logger in wanted else _resolve(cls, name)


def nearest_logger(key: str, value: str | None) -> str | None:
    """The logger's name most like a value of `trainer.logger`; None for another key, or if none is similar."""
    names = [*LOGGERS, *(cls.__name__ for cls in concrete_subclasses(Logger))]
    return nearest(value, names) if key == "trainer.logger" and value else None


_resolve: Any = _typehints.resolve_class_path_by_name
# it has no setting for names; `tests/config/test_short_names.py` fails if a later version looks elsewhere
setattr(_typehints, "resolve_class_path_by_name", resolve)  # noqa: B010 - types differ
