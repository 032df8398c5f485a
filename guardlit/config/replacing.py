"""What jsonargparse has no setting for: how a class replaces another one, and short names of loggers.

A class that replaces another one starts from its own defaults, and a list replaces a list. jsonargparse keeps of the
earlier class every option that the later one would accept as well: another scorer would load the earlier one's weights,
and another optimizer would take AdamW's defaults, which are in no file. Lists of equal length it merges item by item.

A class has one short name in jsonargparse, its own, such as `WandbLogger`. A logger also has one of `LOGGERS`.
"""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace, _typehints
from lightning.pytorch.loggers import Logger

from guardlit.config.nearest import concrete_subclasses, import_class, nearest

LOGGERS = {
    "tensorboard": "guardlit.training.logs.in_folder.TensorBoard",
    "csv": "guardlit.training.logs.in_folder.CSV",
    "wandb": "lightning.pytorch.loggers.WandbLogger",
    "mlflow": "lightning.pytorch.loggers.MLFlowLogger",
}
"""Short name -> import path of the class."""

SUB_DEFAULTS: Any = _typehints.sub_defaults
"""True while jsonargparse fills in defaults beneath a value that is there already."""


def drop_options(_: Any, earlier: Any, later: Any) -> None:
    """Empty the options of an earlier class in place if the later one is another; takes jsonargparse's place."""
    if not earlier or "init_args" not in earlier or _same(earlier["class_path"], later["class_path"]):
        return
    options = earlier["init_args"]
    for name in list(vars(options) if isinstance(options, Namespace) else options):
        options.pop(name)


def _same(one: str | None, other: str | None) -> bool:
    if one == other or one is None or other is None:  # of a data class, whose name may be left out
        return True
    return import_class(one) is not None and import_class(one) is import_class(other)


def adapt(value: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
    """As jsonargparse's, but a list that is given as one has nothing of the list before it."""
    if isinstance(value, list) and not kwargs.get("append") and not SUB_DEFAULTS.get():
        kwargs["prev_val"] = None
    return _adapt(value, typehint, *args, **kwargs)


def resolve(cls: Any, name: str) -> str:
    """As jsonargparse's, where a logger may have a short name."""
    wanted = cls if isinstance(cls, tuple) else (cls,)
    return LOGGERS[name] if name in LOGGERS and Logger in wanted else _resolve(cls, name)


def nearest_logger(key: str, value: str | None) -> str | None:
    """The logger's name most like a value of `trainer.logger`; None for another key, or if none is similar."""
    names = [*LOGGERS, *(cls.__name__ for cls in concrete_subclasses(Logger))]
    return nearest(value, names) if key == "trainer.logger" and value else None


_adapt: Any = _typehints.adapt_typehints
_resolve: Any = _typehints.resolve_class_path_by_name
# `tests/config/test_replacing.py` and `test_short_names.py` fail if a later version looks elsewhere
setattr(_typehints, "discard_init_args_on_class_path_change", drop_options)  # noqa: B010 - types differ
setattr(_typehints, "adapt_typehints", adapt)  # noqa: B010
setattr(_typehints, "resolve_class_path_by_name", resolve)  # noqa: B010 - types differ
