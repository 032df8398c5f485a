"""Mistakes of a command line that the source files show, found before the seconds that importing torch takes.

What is not certain here, such as a class of another package, is left to the parser, which says it in the same words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from guardlit.config.bases import expand
from guardlit.config.documents import check_config_file, compose, line_of
from guardlit.config.locate import config_files, given_options
from guardlit.config.nearest import hint, nearest, nearest_key
from guardlit.config.static.options import Command, Option, class_named, expanded, subclasses
from guardlit.config.static.sources import Source

COMMON = ("config", "print_config", "seed_everything", "base", "help")
FOREIGN = re.compile(
    r"(?<![\w./-])(?!(?:guardlit|guardlit_callbacks|lightning|torch)\.)[A-Za-z_]\w*\.(?:\w+\.)*[A-Z]\w*"
)
SETTING = re.compile("GUARDLIT_(CONFIG$|.*__)")
"""An environment variable that is a setting."""


class Early:
    """Looks at the command line of a command.

    Args:
        command: whose options are known.
        names: public names of guardlit, which classes may be called by.
    """

    def __init__(self, command: Command, names: Sequence[str]) -> None:
        self._options = {option.key: option for option in command.options()}
        self._groups = {key[:end] for key in self._options for end in range(len(key)) if key[end] == "."}
        self._names, self._classes = names, dict[str, str]()
        self._keys = [*self._options, *sorted(self._groups), *COMMON]
        self._skipped = {*COMMON, *command.linked}
        self._foreign = False
        """Whether a class of another package may be named, which may define others."""

    def mistake(self, args: Sequence[str]) -> str | None:
        """The first mistake that is certain, in one line; raises `GuardlitError` for a wrong `base`.

        Args:
            args: the command line after the command.
        """
        args = expand(args)
        texts = [_text(file) for file in config_files(args)]
        self._foreign = any(map(FOREIGN.search, [*args, *texts])) or any(map(SETTING.match, os.environ))
        found = (text for option, value in given_options(args) for text in self._given(option, value))
        return None if "--" in args else next(found, None)

    def _given(self, option: str, value: str) -> Iterator[str]:
        if option in ("-c", "--config"):
            yield from self._file(Path(value))
        elif option.startswith("--"):
            yield from self._option(option[2:].removesuffix("+"), value)

    def _option(self, name: str, value: str) -> Iterator[str]:
        if name in self._groups:  # as JSON or a file, which may name any class
            self._classes.clear()
            return
        if name in self._skipped or name.endswith(".help"):
            return
        key = name.removesuffix(".class_path")
        parents = [parent for parent in self._options if f"{key}.".startswith(f"{parent}.")]
        if not parents or (self._options[parents[0]].is_plain and key != parents[0]):
            close = nearest_key(name, self._keys)
            yield f"unknown option --{name}{hint(close and f'--{close}')}"
        elif key == parents[0]:
            yield from self._class(self._options[key], value, f"--{name}: ")
        else:
            first = key[len(parents[0]) + 1 :].removeprefix("init_args.").partition(".")[0].removesuffix("+")
            if first not in ("init_args", "dict_kwargs"):
                yield from self._init_arg(parents[0], first, f"--{name}: ")

    def _file(self, file: Path) -> Iterator[str]:
        if not file.is_file():
            return
        if wrong := check_config_file(file, self._groups):
            yield wrong
            return
        root = compose(file)
        if _is_written_out(root):
            yield from self._mapping(root, "", file)
        else:
            self._classes.clear()

    def _mapping(self, node: yaml.Node | None, prefix: str, file: Path) -> Iterator[str]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        if not pairs or any(key.value == "class_path" for key, _ in pairs):  # a further file, or a class of settings
            self._classes.clear()
            return
        for key, value in pairs:
            name = f"{prefix}{key.value}"
            place = f"{file}:{line_of(key)}: {name}: "
            if name in self._options:
                yield from self._value(self._options[name], value, file)
            elif name in self._groups:
                yield from self._mapping(value, f"{name}.", file)
            elif prefix and isinstance(value, yaml.ScalarNode) and name not in self._skipped:
                yield f"{place}unknown key{hint(nearest_key(name, self._keys))}"

    def _value(self, option: Option, node: yaml.Node, file: Path) -> Iterator[str]:
        if isinstance(node, yaml.ScalarNode):
            yield from self._class(option, node.value, f"{file}:{line_of(node)}: {option.key}: ")
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key, value in sorted(pairs, key=lambda pair: pair[0].value != "class_path"):
            if key.value == "class_path" and isinstance(value, yaml.ScalarNode):
                yield from self._class(option, value.value, f"{file}:{line_of(key)}: {option.key}: ")
            elif key.value == "init_args" and isinstance(value, yaml.MappingNode):
                for name, _ in value.value:
                    place = f"{file}:{line_of(name)}: {option.key}: "
                    yield from self._init_arg(option.key, name.value, place)

    def _class(self, option: Option, name: str, place: str) -> Iterator[str]:
        self._classes[option.key] = name
        base = _own_base(option)
        if base is None or self._foreign or not name.isidentifier() or class_named(name):
            return
        if close := nearest(name, subclasses(base, self._names)):
            yield f"{place}{name!r} is no known {base.node.name}{hint(close)}"

    def _init_arg(self, key: str, name: str, place: str) -> Iterator[str]:
        chosen = class_named(self._classes.get(key, "-"))
        if _own_base(self._options[key]) is None or chosen is None or not _is_own(chosen):
            return
        names = {parameter.name for parameter in chosen.parameters()}
        if name not in names:
            below = {o.key for parameter in chosen.parameters() for o in expanded(Option(parameter.name, parameter))}
            known = sorted(names | below)
            yield f"{place}{chosen.node.name} has no option {name!r}{hint(nearest(name, known), known)}"


def _own_base(option: Option) -> Source | None:
    base = option.base
    return base if base is not None and _is_own(base) and not base.is_dataclass else None


def _is_own(source: Source) -> bool:
    """Whether a class is of guardlit; of others the source may not say what they take."""
    return source.module.startswith("guardlit.")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError:  # `check_config_file` says so
        return ""


def _is_written_out(node: yaml.Node | None) -> bool:
    """Whether no key is a merge (`<<`) or dotted, such as `reward.class_path`; these are left to the parser."""
    if isinstance(node, yaml.MappingNode):
        return all(key.value != "<<" and "." not in key.value and _is_written_out(value) for key, value in node.value)
    return not isinstance(node, yaml.SequenceNode) or all(map(_is_written_out, node.value))
