"""Output of commands on the terminal, and their options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from guardlit.errors import GuardlitError, did_you_mean

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PLAIN_WIDTH = 160
"""Characters of a line where the output is not a terminal."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `GuardlitError` for mistakes and takes no abbreviated options.

    Args:
        prog: the command as a user types it.
        usage_hint: added to every error.
        kwargs: of `ArgumentParser`.
    """

    def __init__(self, prog: str, *, usage_hint: str = "", **kwargs: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **kwargs)
        self._usage_hint = usage_hint

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """Parse options; an unknown one is an error that names the most similar one."""
        options, unknown = self.parse_known_args(args)
        if unknown:
            known = [string for action in self._actions for string in action.option_strings]
            hint = did_you_mean(unknown[0].split("=")[0], known)
            self.error(": ".join(filter(None, [f"unknown option {unknown[0]}", hint])))
        return options

    def error(self, message: str) -> NoReturn:
        """Raise."""
        raise GuardlitError(f"{message} {self._usage_hint}".rstrip())


def show(*parts: RenderableType, width: int = PLAIN_WIDTH) -> None:
    """Print texts and tables one below the other, in color on a terminal and plain elsewhere.

    Args:
        parts: a text is printed as it is, without markup.
        width: of a line where the output is not a terminal.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=width)
    for part in parts:
        console.print(part, markup=False, highlight=False)


def line_width() -> int:
    """Characters of a line of what `show` prints: the terminal's, or `PLAIN_WIDTH` elsewhere."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else PLAIN_WIDTH


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    footer: Sequence[str] | None = None,
    left: bool = False,
    **options: Any,
) -> Table:
    """A table without frames: its first column is left-aligned, the others are right-aligned; cells are plain text.

    Args:
        header: one a column.
        rows: cells.
        footer: one a column.
        left: align all columns left.
        options: of rich's `Table`.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(**{"box": box.SIMPLE, "pad_edge": False, "show_footer": footer is not None, **options})
    for number, heading in enumerate(header):
        end = Text(footer[number] if footer else "")
        grid.add_column(Text(heading), end, justify="right" if number and not left else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def times(ratio: float) -> str:
    """A ratio of at least 1, such as `26x` or `8.40x`; `-` for NaN."""
    return "-" if math.isnan(ratio) else f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2f}x"
