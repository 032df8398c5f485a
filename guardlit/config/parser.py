"""The argument parser of `guardlit fit` and the other commands of Lightning: a mistake is one line with its place."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser

import guardlit.config.replacing  # noqa: F401
from guardlit.advantage import GroupAdvantage
from guardlit.config.bases import expand
from guardlit.config.classes import broken_import, scalars
from guardlit.config.documents import check_config_file
from guardlit.config.dropped import dropped
from guardlit.config.explain import explain, refused, unexpected_null
from guardlit.config.linked import ignored
from guardlit.config.locate import (
    CONFIG_OPTIONS,
    config_files,
    config_from_environment,
    given_options,
    variable,
)
from guardlit.config.modules import make_importable
from guardlit.config.nearest import hint, keys_of, nearest
from guardlit.config.nulls import nulls, odd_keys
from guardlit.config.saved import without_options
from guardlit.errors import GuardlitError

set_parsing_settings(subclasses_enabled=[GroupAdvantage])  # as in config.static.options.REPLACEABLE


class GuardlitParser(LightningArgumentParser):
    """A LightningCLI parser whose errors are one line on stderr, with exit code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # or a misspelled option may silently pass for another
        super().__init__(*args, **kwargs)
        self.args: list[str] = []
        self._folder = Path.cwd()

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        """As `ArgumentParser.parse_args`, after a look at the files given by `--config`."""
        self._folder = Path.cwd()
        self.args = self._expanded(sys.argv[1:] if args is None else args)
        if not any(isinstance(action, ActionConfigFile) for action in self._actions):  # of a class, for its parameters
            return super().parse_args(self.args, *rest, **kwargs)
        given = config_from_environment(self) if self.default_env else None
        if given and not given[1].is_file():
            _fail(
                self, f"environment variable {given[0]}: expected a YAML file or a recipe, there is no file {given[1]}"
            )
        if _subparsers(self):
            return super().parse_args(self.args, *rest, **kwargs)
        if given:  # jsonargparse itself follows neither a recipe's name nor what a file builds on
            os.environ[given[0]] = str(given[1])
            self.args = [*self._expanded([CONFIG_OPTIONS[0], str(given[1])]), *self.args]
        files = config_files(self.args)
        self._check_files(files)
        self._check_environment()
        make_importable(files)
        config = self._parsed(files, *rest, **kwargs)
        for null in nulls(self, config):
            _fail(self, unexpected_null(self, self.args, null))
        for line in ignored(self, config, files):
            _fail(self, line)
        for section, value in vars(config).items():
            for key in odd_keys(value):
                _fail(self, f"{section}: a key must be text, found {key!r}; put it in quotes")
        return config

    def _expanded(self, args: Sequence[str]) -> list[str]:
        try:
            return expand(args)
        except GuardlitError as error:
            _fail(self, str(error))

    def _parsed(self, files: Sequence[Path], *rest: Any, **kwargs: Any) -> Namespace:
        try:
            config = super().parse_args(self.args, *rest, **kwargs)
        except SystemExit as stop:
            if not stop.code:  # it printed the configuration
                self._report_dropped()
            raise
        except Exception as error:
            if not self.exit_on_error:
                raise
            self._explain(error, files)
            raise
        self._report_dropped()
        return config

    def _explain(self, error: Exception, files: Sequence[Path]) -> None:
        """Say in one line what jsonargparse or the import of a class raised; return where it is a bug."""
        given = {f"{option}: ": value for option, value in given_options(self.args)}
        given |= {f"{file}:{line}: ": text for file in files for line, text in scalars(file)}
        for place, text in given.items():
            if (broken := broken_import([text])) is not None:
                _fail(self, f"{place}{broken[0]!r} {broken[1]}")
        if isinstance(error, ArithmeticError | AttributeError | LookupError | RecursionError | TypeError | ValueError):
            _fail(self, f"the settings cannot be read ({type(error).__name__}: {error})")

    def _check_files(self, files: Sequence[Path]) -> None:
        """Look at the configuration files as YAML."""
        sections = {key[:end] for key in keys_of(self) for end in range(len(key)) if key[end] == "."}
        for file in files:
            if file.exists() and (message := check_config_file(file, sections)):
                _fail(self, message)

    def _report_dropped(self) -> None:
        """Say what the user set for a class that is not used."""
        for line in dropped(self, self.args) if getattr(rank_zero_only, "rank", 0) == 0 else ():
            sys.stderr.write(f"{_program(self)}: {line}\n")

    def _check_environment(self) -> None:
        """Refuse variables that look like settings and are none, which would be ignored silently."""
        prefix = variable(self, "")
        if not self.default_env or "__" not in prefix:
            return
        known = {variable(self, key): key for key in [*keys_of(self), "config"]}
        for name in sorted(os.environ):
            if name.startswith(prefix) and name not in known:
                _fail(self, f"environment variable {name}: no setting has this name{hint(nearest(name, known))}")

    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """As `ArgumentParser`'s, without options of other commands: any run's `config.yaml` goes into every command."""
        known = {action.dest for action in self._actions}
        return super()._load_config_parser_mode(without_options(content, known), *args, **kwargs)

    def instantiate_classes(self, cfg: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        """As `ArgumentParser.instantiate_classes`; a value that a class refuses becomes a `GuardlitError`."""
        try:
            instantiated: Namespace = super().instantiate_classes(cfg, *args, **kwargs)
        except (ArithmeticError, TypeError, ValueError, MisconfigurationException) as error:
            raise GuardlitError(refused(str(error))) from error
        return instantiated

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line and exit with 2, or raise where the caller asked for exceptions."""
        if not self.exit_on_error:
            super().error(message, ex)
        subparsers = _subparsers(self)
        subcommand = next((arg for arg in self.args if arg in subparsers), None)
        parser = self if subcommand is None else subparsers[subcommand]
        with chdir(self._folder):  # jsonargparse reads a file from within the file's folder
            _fail(parser, explain(parser, _without(subcommand, message), self.args))


def _fail(parser: ArgumentParser, message: str) -> NoReturn:
    sys.stderr.write(f"{_program(parser)}: error: {' '.join(message.split())}\n")
    raise SystemExit(2)


def _program(parser: ArgumentParser) -> str:
    return parser.prog.replace(" [options]", "")


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
