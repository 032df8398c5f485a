"""Defaults of classes that the command line can show and that a script gets as real, separate instances."""

from __future__ import annotations

from typing import TypeVar

from guardlit.config.nearest import import_class

T = TypeVar("T")


def unlazy(value: T) -> T:
    """A new instance of what jsonargparse's `lazy_instance` stands for; any other value is returned as it is.

    The stand-in has the parser's bookkeeping among its attributes, and as a default it is shared by all who take it.
    """
    if not hasattr(value, "lazy_get_init_data"):
        return value
    data = value.lazy_get_init_data()
    cls = import_class(data.class_path)
    assert cls is not None
    return cls(**dict(data.get("init_args") or {}))  # type: ignore[no-any-return]
