"""Every command with its options: what `--help` prints."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stdout
from unittest import mock

from guardlit.cli import main
from guardlit.commands import COMMANDS

COLUMNS = "96"
SHARED = "\noptions of all these commands:"
KEYS = "All other options are the [keys of a configuration](reference/keys.md), `--config` first of them."


def commands() -> str:
    """A section a command."""
    return "\n\n".join(f"## {name}\n\n{_section(name)}" for name in COMMANDS)


def _section(name: str) -> str:
    own, shared, _ = help_of(name).partition(SHARED)
    return f"```text\n{own.rstrip()}\n```" + (f"\n\n{KEYS}" if shared else "")


def help_of(name: str) -> str:
    """What a command prints when it is asked for help.

    Args:
        name: of the command.
    """
    printed = io.StringIO()
    environment, arguments = mock.patch.dict(os.environ, COLUMNS=COLUMNS), mock.patch.object(sys, "argv", ["guardlit"])
    with redirect_stdout(printed), environment, arguments:
        try:
            main([name, "--help"])
        except SystemExit as end:  # argparse's, after it has printed
            if end.code:
                raise
    return printed.getvalue()
