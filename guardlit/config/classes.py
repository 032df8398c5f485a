"""What is wrong with a class that the user named: its import, its base class, its methods."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from guardlit.config.documents import compose, line_of
from guardlit.config.nearest import class_parser, classes_in, concrete_subclasses, nearest
from guardlit.config.static.options import REPLACEABLE

DOTTED = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?![\w/-])")
"""An import path in a longer text."""


BROKEN, MISSING = "cannot be imported", ("cannot be found", "is not in the module")
PACKAGE = str(Path(__file__).parents[1])
OURS = f"{__name__.partition('.')[0]}."
TROUBLE = re.compile(
    "import path|Import path|instantiatable|No module named|has no attribute|callable class|to be a (subclass|function)"
)
"""Messages of jsonargparse about the class itself, not about its options."""


def unfit_class(message: str, given: str, bases: Sequence[type]) -> tuple[str, str] | None:
    """The import path that a message of jsonargparse is about, and what is wrong with it.

    Args:
        message: about a value.
        given: the value, and the classes on the way to it.
        bases: one of which the class must be.

    Returns:
        The path and the rest of a sentence about it; None where the message is about something else, or a class of
        that name is known elsewhere.
    """
    if any(only_settings(base) for base in bases):
        return None
    if not TROUBLE.search(message):
        return broken_import([given]) if bases else None
    known = {cls.__name__ for base in bases for cls in concrete_subclasses(base)}
    about = message.rpartition("expects a function or a callable class:")[2]
    for path in DOTTED.findall(f"{given} {about}"):
        if (what := fault(path, bases)) is not None:
            moved = path.rpartition(".")[2] in known and what.startswith(MISSING)
            explained = moved or path.startswith(OURS)  # by the known names
            return None if explained and not what.startswith(BROKEN) else (path, what)
    return None


def only_settings(base: type) -> bool:
    """Whether a value of this type is written as a mapping of its settings, and never names a class."""
    return is_dataclass(base) and base.__name__ not in REPLACEABLE


def parameter_classes(parser: ArgumentParser, keys: Sequence[str], classes: Sequence[str]) -> list[type]:
    """The classes that a parameter asks for.

    Args:
        parser: of the subcommand.
        keys: the key in the configuration, and the parameters of the classes on the way.
        classes: import paths of these classes.
    """
    owner = class_parser(classes[len(keys) - 2]) if len(keys) > 1 else parser
    action = next((action for action in owner._actions if action.dest == keys[-1]), None)
    return classes_in(getattr(action, "_typehint", None))


def fault(path: str, bases: Sequence[type]) -> str | None:
    """What is wrong with an import path, as the rest of a sentence about it; None if it names a usable class.

    Args:
        path: with a dot.
        bases: one of which the class must be; none if that is not known.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            return _missing(error.name)
        return f"{BROKEN}: {_said(error)}"
    except Exception as error:
        return f"{BROKEN}: {_said(error)}"
    if not hasattr(module, name):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        close = nearest(name, classes)
        return f"is not in the module {module_name}" + (f"; did you mean {module_name}.{close}?" if close else "")
    return _unfit(getattr(module, name), bases)


def broken_import(texts: Sequence[str]) -> tuple[str, str] | None:
    """The first import path whose module exists and raises, and what is wrong; None if there is none.

    Args:
        texts: that may hold import paths, such as the values on a command line.
    """
    for path in dict.fromkeys(path for text in texts for path in DOTTED.findall(text)):
        if (what := fault(path, [])) is not None and what.startswith(BROKEN):
            return path, what
    return None


def scalars(file: Path) -> Iterator[tuple[int, str]]:
    """The texts in a YAML file with their lines, keys aside; nothing where it cannot be read."""
    try:
        todo = [compose(file)]
    except (OSError, yaml.YAMLError):
        return
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.ScalarNode):
            yield line_of(node), str(node.value)
        elif isinstance(node, yaml.MappingNode):
            todo += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            todo += node.value


def _missing(module: str) -> str:
    parent, _, name = module.rpartition(".")
    where = f"in {parent}" if parent else "in this folder, next to the configuration or installed"
    return f"cannot be found: there is no module {name!r} {where}"


def _said(error: BaseException) -> str:
    """The error's own line, and where in the user's file it was raised."""
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, SyntaxError):
        said, place = error.msg or "", f" ({error.filename}, line {error.lineno})"
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not _ours(f.filename)]
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{place}"


def _ours(file: str) -> bool:
    """Whether a frame is of the import itself, of this package or of an installed one."""
    return file.startswith(("<", PACKAGE)) or "site-packages" in file or Path(file).parent.name == "importlib"


def _unfit(found: Any, bases: Sequence[type]) -> str | None:
    wanted = " or ".join(base.__name__ for base in bases)
    if not inspect.isclass(found):
        if inspect.isfunction(found) and bases:
            return f"is a function that is not annotated to return {wanted}"
        return f"is a {type(found).__name__}, not a class" if bases else None
    if bases and not any(_is_a(found, base) for base in bases):
        protocols = [base for base in bases if getattr(base, "_is_protocol", False)]
        if lacking := [name for base in protocols for name in _members(base) if not hasattr(found, name)]:
            return f"lacks {_methods(lacking)} of {protocols[0].__name__}"
        return f"is no subclass of {wanted}: write class {found.__name__}({_public(bases[0])})"
    lacking = sorted(getattr(found, "__abstractmethods__", ()))
    return f"lacks {_methods(lacking)} of {wanted or 'its base class'}" if lacking else None


def _public(cls: type) -> str:
    """The shortest import path of a class."""
    parts = cls.__module__.split(".")
    modules = [".".join(parts[: end + 1]) for end in range(len(parts))]
    public = (name for name in modules if getattr(sys.modules.get(name), cls.__name__, None) is cls)
    return f"{next(public, cls.__module__)}.{cls.__name__}"


def _is_a(cls: type, base: type) -> bool:
    if getattr(base, "_is_protocol", False):
        return all(hasattr(cls, name) for name in _members(base))
    return issubclass(cls, base)


def _members(protocol: type) -> list[str]:
    return sorted(name for name in vars(protocol) if not name.startswith("_"))


def _methods(names: Sequence[str]) -> str:
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"the method{'s' if len(names) > 1 else ''} {listed}"
