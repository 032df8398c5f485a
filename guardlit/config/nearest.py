"""Names that are similar to a misspelled one: options, configuration keys, classes and files."""

from __future__ import annotations

import ast
import collections.abc
import difflib
import inspect
import re
import typing
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from guardlit.errors import similar

MOST_NAMES_LISTED = 8
LIKE = 0.66  # two of three letters, as in sed for sde


def hint(close: str | None, known: Sequence[str] = ()) -> str:
    """The end of an error message: the near miss, or all known names where they are few, or nothing."""
    if close is not None:
        return f"; did you mean {close}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= MOST_NAMES_LISTED else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like this one, letter case aside; None if none is similar."""
    return next(iter(similar(name, known)), None)


def nearest_key(key: str, known: Collection[str]) -> str | None:
    """The known dotted key whose last part is most like this one's; the other parts decide between equals."""

    def likeness(candidate: str) -> tuple[float, float]:
        last = difflib.SequenceMatcher(None, candidate.rpartition(".")[2], key.rpartition(".")[2])
        entire = difflib.SequenceMatcher(None, candidate, key)
        return last.ratio(), entire.ratio()

    best = max(known, key=likeness, default=None)
    if best is not None and likeness(best)[0] >= LIKE:
        return best
    head, _, last = key.rpartition(".")  # a parameter of a class is no key of the parser: look at its parent
    close = nearest_key(head, known) if "." in head else None
    return f"{close}.{last}" if close is not None and close != head else None


def nearest_file(path: Path) -> str | None:
    """The file of the same folder whose name is most similar to that of a missing one."""
    siblings = path.parent.glob(f"*{path.suffix}")
    close = nearest(path.stem, [file.stem for file in siblings])
    return None if close is None else str(path.with_name(close + path.suffix))


def nearest_literal(value: str | None, expected: Sequence[str]) -> str | None:
    """The choice most like a value, of the `typing.Literal` among some annotations, given as text."""
    literals = [text.removeprefix("typing.Literal") for text in expected if text.startswith("typing.Literal[")]
    choices = [str(choice) for text in literals for choice in ast.literal_eval(text)]
    return nearest(value or "", choices)


def keys_of(parser: ArgumentParser) -> list[str]:
    """The dotted keys of every option of a parser, help aside."""
    options = (string for action in parser._actions for string in action.option_strings)
    return [option[2:] for option in options if re.fullmatch(r"--(?!(.*\.)?help$).+", option)]


def import_class(path: str) -> type | None:
    """The class of an import path, or None."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except Exception:  # of a user's module, for example
        return None
    return found if inspect.isclass(found) else None


def class_parser(path: str) -> ArgumentParser:
    """A parser whose options are the parameters of a class, given by import path; without options if there is none."""
    parser = ArgumentParser(exit_on_error=False, print_config=None)
    cls = import_class(path)
    if cls is not None:
        parser.add_class_arguments(cls, fail_untyped=False)
    return parser


def classes_in(annotation: Any) -> list[type]:
    """The classes that a type annotation asks for, builtins aside: in unions, lists, and what a callable returns."""
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return [] if annotation.__module__ == "builtins" else [annotation]
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is collections.abc.Callable:
        parts = parts[-1:]
    return list(dict.fromkeys(cls for part in parts for cls in classes_in(part)))


def concrete_subclasses(base: type) -> set[type]:
    """Every imported class that is a `base` and can be instantiated, private ones aside."""
    found: set[type] = set() if inspect.isabstract(base) or base.__name__.startswith("_") else {base}
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        if not hasattr(subclass, "lazy_get_init_args"):  # jsonargparse's stand-ins for default instances
            found |= concrete_subclasses(subclass)
    return found
