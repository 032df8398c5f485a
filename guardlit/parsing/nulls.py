"""Nulls where a number, a text or a mapping belongs: jsonargparse lets them pass as values that were not given."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from guardlit.parsing.nearest import import_class


@dataclass(frozen=True)
class Null:
    """A null that is refused.

    Attributes:
        key: in the configuration.
        owner: the class whose parameter it is, if it lies within a class.
        parameter: its name there.
        wanted: the type annotation that does not allow it.
    """

    key: str
    wanted: Any
    owner: str | None = None
    parameter: str | None = None


def nulls(parser: ArgumentParser, config: Namespace) -> Iterator[Null]:
    """Nulls of a configuration that stand where neither annotation nor default allows one.

    Args:
        parser: of the subcommand.
        config: what it parsed.
    """
    for action in parser._actions:
        wanted = getattr(action, "_typehint", None)
        value = config.get(action.dest)
        if action.dest.endswith(".help"):  # of a class, which takes the class's name
            continue
        if value is None and wanted is not None and action.default is not None and not _allows(wanted):
            yield Null(action.dest, wanted)
        yield from _within(action.dest, value)


def _within(key: str, value: Any) -> Iterator[Null]:
    """Nulls among the parameters of classes, at any depth."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _within(key, item)
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _within(key, item)
    if isinstance(value, Namespace):
        arguments = value.get("init_args")
        given = vars(arguments) if isinstance(arguments, Namespace) else {}
        if any(argument is None for argument in given.values()):
            yield from _parameters(key, str(value.get("class_path")), given)
        for item in (given or vars(value)).values():
            yield from _within(key, item)


def _parameters(key: str, path: str, given: Mapping[str, Any]) -> Iterator[Null]:
    cls = import_class(path)
    if cls is None:
        return
    try:
        parameters, hints = inspect.signature(cls).parameters, typing.get_type_hints(cls.__init__)
    except (NameError, TypeError, ValueError):  # annotations that only a type checker can read
        return
    for name, argument in given.items():
        needed = name in parameters and parameters[name].default is not None and name in hints
        if argument is None and needed and not _allows(hints[name]):
            yield Null(key, hints[name], path.rpartition(".")[2], name)


def _allows(annotation: Any) -> bool:
    return annotation in (Any, None, NoneType) or NoneType in typing.get_args(annotation)
