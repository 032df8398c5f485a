"""Options that take several words, such as `--prompts "a cat" "a dog"`, in the form that LightningCLI parses."""

from __future__ import annotations

import json
from collections.abc import Sequence

from guardlit.config.console import Parser
from guardlit.errors import GuardlitError


def split_lists(program: str, args: list[str], names: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Take options with one or more words out of a command line; repeated ones add up.

    Args:
        program: for messages.
        args: of the command.
        names: of the options, without dashes.

    Returns:
        The words by option, and the other arguments.

    Raises:
        GuardlitError: a word that begins like a JSON list and is none.
    """
    parser = Parser(program, add_help=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="+", action="extend", default=[])
    options, rest = parser.parse_known_args(args)
    return {name: _flat(name, getattr(options, name)) for name in names}, rest


def as_options(words: dict[str, list[str]]) -> list[str]:
    """Options with a JSON list each; those without words are left out, and a lone null stays one."""
    given = {name: "null" if values == ["null"] else json.dumps(values) for name, values in words.items() if values}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def _flat(name: str, values: list[str]) -> list[str]:
    try:
        words = [word for value in values for word in (json.loads(value) if value.startswith("[") else [value])]
    except ValueError as error:
        raise GuardlitError(f'--{name}: a list that is no JSON ({error}); write --{name} a b, or ["a", "b"]') from error
    if odd := [word for word in words if not isinstance(word, str)]:
        raise GuardlitError(f'--{name}: found {odd[0]!r}, expected text; write --{name} a b, or ["a", "b"]')
    return words
