"""The argument parser behind `guardlit fit` and its sisters: a mistake gets one line that names the place."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from guardlit.errors import GuardlitError
from guardlit.parsing.bases import expand
from guardlit.parsing.explain import explain
from guardlit.parsing.locate import compose, config_files
from guardlit.parsing.nearest import keys_of


class GuardlitParser(LightningArgumentParser):
    """A LightningCLI parser whose errors are one line on stderr, with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # or a misspelt option may silently be taken for another
        super().__init__(*args, **kwargs)
        self.args: list[str] = []

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """As `ArgumentParser.parse_args`, after a look at the files given by `--config`."""
        try:
            self.args = expand(sys.argv[1:] if args is None else args)
        except GuardlitError as error:
            _fail(self, str(error))
        if not _subparsers(self):
            sections = {key.partition(".")[0] for key in keys_of(self) if "." in key}
            for file in config_files(self.args):
                if file.is_file() and (message := check_config_file(file, sections)):
                    _fail(self, message)
        return super().parse_args(self.args, *rest, **kwargs)

    def instantiate_classes(self, cfg: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """As `ArgumentParser.instantiate_classes`; a value that a class refuses becomes a `GuardlitError`."""
        try:
            instantiated: Namespace = super().instantiate_classes(cfg, *args, **kwargs)
        except (ValueError, MisconfigurationException) as error:
            raise GuardlitError(str(error)) from error
        return instantiated

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line and exit with 2, or raise where the caller asked for exceptions."""
        if not self.exit_on_error:
            super().error(message, ex)
        subparsers = _subparsers(self)
        subcommand = next((arg for arg in self.args if arg in subparsers), None)
        parser = self if subcommand is None else subparsers[subcommand]
        _fail(parser, explain(parser, _without(subcommand, message), self.args))


def _fail(parser: ArgumentParser, message: str) -> NoReturn:
    program = parser.prog.replace(" [options]", "")
    sys.stderr.write(f"{program}: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def check_config_file(path: Path, sections: Collection[str]) -> str | None:
    """What is wrong with a configuration file as YAML, whatever its keys mean; None if nothing.

    Args:
        path: an existing file.
        sections: keys that hold further keys.
    """
    try:
        root = compose(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        return f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"{path}: not valid YAML: {error}"
    except OSError as error:
        return f"{path}: {error.strerror}"
    if not isinstance(root, yaml.MappingNode):
        known = ", ".join(f"{section}:" for section in sorted(sections))
        return f"{path}: expected the sections {known}; found {_describe(root)}"
    for first, second in _duplicates(root):
        return f"{path}:{_line(second)}: key {second.value!r} is given twice, first on line {_line(first)}"
    for key, value in root.value:
        is_settings_or_file = isinstance(value, yaml.MappingNode) or value.tag.endswith((":null", ":str"))
        if key.value in sections and not is_settings_or_file:
            return f"{path}:{_line(key)}: {key.value}: expected a mapping of settings, found {_describe(value)}"
    return None


def _describe(node: yaml.Node | None) -> str:
    if node is None:
        return "nothing"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return repr(node.value) if node.tag.endswith(":str") else str(node.value)


def _duplicates(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Pairs of equal keys of one mapping, of which YAML silently keeps the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _duplicates(item)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield seen[key.value], key
                seen[key.value] = key
            yield from _duplicates(value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _without(subcommand: str | None, message: str) -> str:
    """The message as the subcommand's own parser would have put it, without the name of the subcommand."""
    message = re.sub(
        r"^(?:Group|Subcommand) '(.+?)' does not accept option '(.+)'", r"Option '\1.\2' is not accepted", message
    )
    prefix = rf"^(the following arguments are required: |Parser key \"|Option '){subcommand}\."
    return re.sub(rf"(?<=[ \"']){subcommand}\.", "", message) if re.match(prefix, message) else message
