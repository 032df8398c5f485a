"""Where the user gave a value: a line of a file, an option, an environment variable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from guardlit.assets.recipes import resolved
from guardlit.config.documents import compose

CONFIG_OPTIONS = ("--config", "-c")


def config_files(args: Sequence[str]) -> list[Path]:
    """The values of `--config` on a command line."""
    return [Path(value) for option, value in given_options(args) if option in CONFIG_OPTIONS and value]


def place(
    parser: ArgumentParser, args: Sequence[str], key: str, name: str | None, value: str | None, first: bool = False
) -> str:
    """Where the value was given that counts: the last on the command line, else the environment.

    Args:
        parser: of the subcommand.
        args: the command line after the subcommand.
        key: in the configuration.
        name: of a parameter beneath the key, at any depth, if the mistake is there.
        value: that was found, as text, if known.
        first: the first on the command line counts.

    Returns:
        `file:line: key: `, `--option: `, `environment variable NAME: ` or `key: `.
    """
    own = variable(parser, key)
    if (name or value) and str(name or value) in os.environ.get(own, ""):  # it is read first: what follows may be right
        return f"environment variable {own}: "
    options = given_options(args)[:: 1 if first else -1]
    found = [_found(option, given, key, name, value) for option, given in options]
    best = max(filter(None, found), key=lambda place: place[0], default=None)  # of equally good ones the one in front
    if best is not None:
        return best[1]
    return f"environment variable {own}: " if own in os.environ else f"{key}: "


def _found(option: str, given: str, key: str, name: str | None, value: str | None) -> tuple[int, str] | None:
    """How well an option or a file fits, and the place: 2 for name and value, 1 for the name, 0 for the key alone."""
    if option in CONFIG_OPTIONS and Path(given).is_file():
        at = _line_of(Path(given), key.split("."), name, value)
        return None if at is None else (at[0], f"{given}:{at[1]}: {key}: ")
    dotted = option.lstrip("-").rstrip("+")
    mentioned = (name or value or "") in f"{dotted} {given}"
    if dotted != key and not (dotted.startswith(f"{key}.") and mentioned):
        return None
    return (2 if value is None or value in given else 1) if mentioned else 0, f"--{dotted}: "


def variable(parser: ArgumentParser, key: str) -> str:
    """The environment variable that sets a key."""
    return f"{parser.env_prefix}_{key.replace('.', '__')}".upper().replace("-", "_")


def config_from_environment(parser: ArgumentParser) -> tuple[str, Path] | None:
    """The variable that names a configuration file, and the file, if it is set."""
    name = variable(parser, "config")
    return (name, resolved(os.environ[name])) if name in os.environ else None


def given_options(args: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a command line, each with its value."""
    given = []
    for arg, following in pairwise([*args, ""]):
        if arg.startswith("-"):
            option, equals, value = arg.partition("=")
            given.append((option, value if equals else following))
    return given


def _line_of(path: Path, keys: Sequence[str], name: str | None, value: str | None) -> tuple[int, int] | None:
    """The line of a key in a file, or of the name and value beneath it, after how well it fits, as for `_found`."""
    node = compose(path)
    line = 0
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        line, node = next(((k.start_mark.line + 1, v) for k, v in pairs if k.value == key), (0, None))
        if node is None:
            return None
    if name is None and value is None:
        return 2, line
    # a value may be written otherwise than it is reported: then its name has to do
    for fit, wanted in ((2, value), (1, None)):
        if (beneath := _line_beneath(node, name, wanted)) is not None:
            return fit, beneath
    return 0, line


def _line_beneath(node: yaml.Node | None, name: str | None, value: str | None) -> int | None:
    if name is None and value is None:
        return None
    items: list[tuple[yaml.Node | None, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        items = node.value
    elif isinstance(node, yaml.SequenceNode):
        items = [(None, item) for item in node.value]
    for key, item in items:
        named = name is None or (key is not None and key.value == name)
        if named and (value is None or _is(item, value)):
            return int((key or item).start_mark.line) + 1
        beneath = _line_beneath(item, name, value)
        if beneath is not None:
            return beneath
    return None


def _is(node: yaml.Node, value: str) -> bool:
    if not isinstance(node, yaml.ScalarNode):
        return False
    name = node.value.rpartition(".")[2]  # a class may be written without its module
    return bool(node.value == value or (name.isidentifier() and name == value.rpartition(".")[2]))
