"""Every command with its options: what `--help` prints, an entry an option."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from unittest import mock

from guardlit.cli import main
from guardlit.commands import COMMANDS
from site_builder.marking import marked

SHARED = "\noptions of all these commands:"
KEYS = "All other options are the [keys of a configuration](reference/keys.md), `--config` first of them."
HELP = ("-h, --help", "--help")
ENTRY = re.compile(r"  (\S.*?)(?:  +(.*))?")
WIDE = "1000"  # columns, so that no text is broken


def commands() -> str:
    """A section a command."""
    return "\n\n".join(f"## {name}\n\n{_section(name)}" for name in COMMANDS)


def _section(name: str) -> str:
    own, shared, _ = help_of(name).partition(SHARED)
    blocks = re.split(r"\n\s*\n", own.strip("\n"))
    parts = [part for block in blocks[1:] for part in _block(block)]
    program = f"```{{program}} guardlit {name}\n```"
    return "\n\n".join([program, *parts, *[KEYS] * bool(shared)])


def _block(block: str) -> Iterator[str]:
    """A paragraph, or a group of options below its title."""
    first, *rest = block.splitlines()
    if not (first.endswith(":") and rest and ENTRY.fullmatch(rest[0])):
        yield marked(block)
        return
    yield f"**{first.rstrip(':').capitalize()}**"
    entries: list[list[str]] = []
    for line in rest:
        if (entry := ENTRY.fullmatch(line)) and not line.startswith("   "):
            entries.append([entry[1], entry[2] or ""])
        else:
            entries[-1][1] += f" {line.strip()}"
    for option, text in entries:
        if option not in HELP:
            yield f"````{{option}} {option}\n\n{marked(text.strip())}\n````"


def help_of(name: str) -> str:
    """What a command prints when it is asked for help.

    Args:
        name: of the command.
    """
    printed = io.StringIO()
    environment, arguments = mock.patch.dict(os.environ, COLUMNS=WIDE), mock.patch.object(sys, "argv", ["guardlit"])
    with redirect_stdout(printed), environment, arguments:
        try:
            main([name, "--help"])
        except SystemExit as end:  # argparse's, after it has printed
            if end.code:
                raise
    return printed.getvalue()
