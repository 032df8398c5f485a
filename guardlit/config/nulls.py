"""Nulls where a number, a text or a mapping belongs, which jsonargparse takes for values that were not given."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from guardlit.config.nearest import class_parser


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
        if wanted is None or action.dest.endswith(".help"):  # groups, whose members come by themselves; help of classes
            continue
        value = config.get(action.dest)
        if value is None and action.default is not None and not _allows(wanted):
            yield Null(action.dest, wanted)
        yield from _within(action.dest, value)


def odd_keys(value: Any) -> Iterator[Any]:
    """Keys that are no text, of mappings at any depth: all that are looked up by a name."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        yield from (key for key in value if not isinstance(key, str))
    if isinstance(value, list | tuple | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from odd_keys(item)


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
    for name, wanted, default in _signature(path):
        # what has no default is missed by the parser itself
        if name in given and given[name] is None and default is not None and not _allows(wanted):
            yield Null(key, wanted, path.rpartition(".")[2], name)


@cache
def _signature(path: str) -> list[tuple[str, Any, Any]]:
    """Name, annotation and default of a class's parameters, those that it passes on to its bases included."""
    return [(a.dest, getattr(a, "_typehint", Any), a.default) for a in class_parser(path)._actions]


def _allows(annotation: Any) -> bool:
    return annotation in (Any, None, NoneType) or NoneType in typing.get_args(annotation)
