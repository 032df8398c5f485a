"""Mistakes of a command line that the source files show, told before the seconds that importing torch takes.

What is not certain here, such as a class of another package, is left to the parser, which says it in the same words.
"""

from __future__ import annotations

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
        self._foreign = False
        """Whether a class of another package is named, which may define others."""

    def mistake(self, args: Sequence[str]) -> str | None:
        """The first mistake that is certain, in one line; raises `GuardlitError` for a wrong `base`.

        Args:
            args: the command line after the command.
        """
        args = expand(args)
        texts = [file.read_text(encoding="utf-8") for file in config_files(args) if file.is_file()]
        self._foreign = any(FOREIGN.search(text) for text in [*args, *texts])
        found = (text for option, value in given_options(args) for text in self._given(option, value))
        return None if "--" in args else next(found, None)

    def _given(self, option: str, value: str) -> Iterator[str]:
        if option in ("-c", "--config"):
            yield from self._file(Path(value))
        elif option.startswith("--"):
            yield from self._option(option[2:].removesuffix("+"), value)

    def _option(self, name: str, value: str) -> Iterator[str]:
        if name in self._groups or name in COMMON or name.endswith(".help"):
            return
        key = name.removesuffix(".class_path")
        parents = [parent for parent in self._options if f"{key}.".startswith(f"{parent}.")]
        if not parents or (self._options[parents[0]].is_plain and key != parents[0]):
            close = nearest_key(name, self._keys)
            yield f"unknown option --{name}{hint(close and f'--{close}')}"
        elif key == parents[0]:
            yield from self._class(self._options[key], value, f"--{name}: ")
        else:
            rest = key[len(parents[0]) + 1 :].removeprefix("init_args.")
            if rest != "init_args":
                yield from self._init_arg(parents[0], rest.partition(".")[0], f"--{name}: ")

    def _file(self, file: Path) -> Iterator[str]:
        if not file.is_file():
            return
        if wrong := check_config_file(file, self._groups):
            yield wrong
            return
        yield from self._mapping(compose(file), "", file)

    def _mapping(self, node: yaml.Node | None, prefix: str, file: Path) -> Iterator[str]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            name = f"{prefix}{key.value}"
            place = f"{file}:{line_of(key)}: {name}: "
            if name in self._options:
                yield from self._value(self._options[name], value, file)
            elif name in self._groups:
                yield from self._mapping(value, f"{name}.", file)
            elif prefix and isinstance(value, yaml.ScalarNode):
                yield f"{place}unknown key{hint(nearest_key(name, self._keys))}"

    def _value(self, option: Option, node: yaml.Node, file: Path) -> Iterator[str]:
        if isinstance(node, yaml.ScalarNode):
            yield from self._class(option, node.value, f"{file}:{line_of(node)}: {option.key}: ")
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
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
        if _own_base(self._options[key]) is None or (chosen := class_named(self._classes.get(key, "-"))) is None:
            return
        known = [o.key for parameter in chosen.parameters() for o in expanded(Option(parameter.name, parameter))]
        if name not in {parameter.name for parameter in chosen.parameters()}:
            yield f"{place}{chosen.node.name} has no option {name!r}{hint(nearest(name, known), sorted(known))}"


def _own_base(option: Option) -> Source | None:
    base = option.base
    return base if base is not None and base.module.startswith("guardlit.") and not base.is_dataclass else None
