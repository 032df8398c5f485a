"""Help and certain mistakes of `fit`, `validate`, `sample`, `export` and their kin, before torch is imported.

What is asked for is then run by `guardlit.commands.lightning_cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import guardlit
from guardlit.commands import COMMANDS
from guardlit.config.static.early import Early
from guardlit.config.static.help import help_text
from guardlit.config.static.options import Command
from guardlit.config.static.sources import UnknownSourceError, mapping
from guardlit.errors import GuardlitError

SECTIONS = {
    "trainer": "guardlit.commands.trainer.Trainer",
    "model": "guardlit.training.module.GRPOModule",
    "data": "guardlit.data.datamodule.PromptDataModule",
}
SKIPPED = frozenset({"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"})
LINKED = frozenset({"data.seed"})


def main(args: list[str]) -> None:
    """Answer for help or a mistake, else run the command.

    Args:
        args: the command and its options.

    Raises:
        GuardlitError: a mistake of the user.
    """
    if shows_help(args):
        return
    check(args)
    from guardlit.commands.lightning_cli import main as run

    run(args)


def command(name: str) -> Command:
    """The options of a command."""
    return Command(name, SECTIONS, SKIPPED, LINKED)


def shows_help(args: Sequence[str], own: Sequence[tuple[str, str]] = ()) -> bool:
    """Print the help of a command if its options ask for it; says whether.

    Args:
        args: the command and its options.
        own: options, each with its text, that are no parameters of its method.
    """
    if not {"-h", "--help"} & set(args):
        return False
    try:
        defaults = {f"trainer.{k}": v for k, v in mapping("guardlit.training.defaults", "DEFAULTS").items()}
        print(help_text(command(args[0]), COMMANDS[args[0]][0], own, guardlit.__all__, defaults), end="")
    except UnknownSourceError:  # of an installation without source files: the parser knows
        return False
    return True


def check(args: Sequence[str]) -> None:
    """Raise `GuardlitError` for a mistake that is certain without importing torch; where it is, the parser looks."""
    if "torch" in sys.modules:
        return
    try:
        found = Early(command(args[0]), guardlit.__all__).mistake(args[1:])
    except UnknownSourceError:
        return
    if found:
        raise GuardlitError(found)
