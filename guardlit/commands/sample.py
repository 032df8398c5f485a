"""`guardlit sample`: what its command line allows beyond LightningCLI's."""

from __future__ import annotations

import sys

from guardlit.commands.first_look import main as run
from guardlit.commands.lists import as_options, split_lists


def main(args: list[str]) -> None:
    """Run `guardlit sample`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an option, a prompt or a checkpoint that cannot be used.
    """
    words, rest = split_lists("guardlit sample", args[1:], ["prompts"])
    arguments = ["sample", *rest, *as_options(words)]
    sys.argv = [sys.argv[0], *arguments]  # what LightningCLI parses, and Lightning's launchers start again
    run(arguments)
