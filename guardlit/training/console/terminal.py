"""A table that grows above a live line on the terminal; all other output is printed above the line too."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

SHORTEST, LONGEST = 8, 24
"""Columns of the bar in the live line; where there is less room it is left out."""
SPARE = 4
"""Columns that the live line leaves free: for the `^C` that a terminal echoes, which must not wrap it."""
REPEAT = 20
"""Rows after which the header is printed again: it has left the screen by then."""


def terminal() -> Console | None:
    """The console of a standard error that is a terminal and can move its cursor; None for a file, a pipe, a log."""
    if not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(file=sys.stderr)
    return console if console.is_terminal and not console.is_dumb_terminal else None


class Above:
    """Stands in for a stream: prints complete lines through a console, above its live line.

    A line is printed as it stands after its last carriage return: of a progress bar of another library, its end.
    """

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console, self._stream, self._rest = console, stream, ""

    def write(self, text: str) -> int:
        """Print what is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._print(line)
        return len(text)

    def flush(self) -> None:
        """An incomplete line waits."""

    def close(self) -> None:
        """Print what has no end."""
        rest, self._rest = self._rest, ""
        if rest:
            self._print(rest)

    def _print(self, line: str) -> None:
        from rich.text import Text

        shown = Text.from_ansi(line.rstrip("\r").rpartition("\r")[2])
        whole = max(map(len, shown.plain.split()), default=0) > self._console.width  # a long path stays in one piece
        self._console.print(shown, soft_wrap=whole, highlight=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@dataclass(frozen=True)
class Status:
    """What the live line shows: as much of it as fits, the most important first.

    Attributes:
        head: such as `round 3/25  rollout`.
        done: units that are done.
        total: of them.
        numbers: the rest, the most important first.
    """

    head: str
    done: int
    total: int
    numbers: Sequence[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One line, never wider than the terminal."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        width = options.max_width - SPARE
        tail = f"{self.done}/{self.total}"
        taken = len(self.head) + len(tail) + 4
        for number in self.numbers:
            if taken + SHORTEST + len(number) + 2 <= width:
                tail, taken = f"{tail}  {number}", taken + len(number) + 2
        bar = min(width - taken, LONGEST)
        grid = Table.grid(padding=(0, 2, 0, 0))
        cells: list[Any] = [Text(self.head, style="bold", no_wrap=True), Text(tail, no_wrap=True)]
        if bar >= SHORTEST:
            cells.insert(1, ProgressBar(max(self.total, 1), self.done, width=bar))
        grid.add_row(*cells)
        yield grid


class LiveTable:
    """Prints rows of a table above a live line, and what others print above the line too.

    While it is open, `sys.stdout`, `sys.stderr` and the handlers of `logging` that write to the terminal print through
    it. Output of other processes and of C++ does not.

    Args:
        console: of the terminal.
        status: the live line as it is now.
    """

    def __init__(self, console: Console, status: Callable[[], Status]) -> None:
        from rich.live import Live

        self._console = console
        # transient: the table is what stays
        self._live: Live = Live(
            console=console, get_renderable=status, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._titles: list[str] = []
        self._rows = 0
        self._restore = ExitStack()

    def open(self) -> None:
        """Show the live line."""
        proxies: dict[Any, Above] = {}
        for name, redirect in (("stderr", redirect_stderr), ("stdout", redirect_stdout)):
            stream = getattr(sys, name)
            if stream.isatty():
                proxies[stream] = proxies[getattr(sys, f"__{name}__")] = Above(self._console, stream)
                self._restore.enter_context(redirect(cast("TextIO", proxies[stream])))
        for handler in _handlers():
            if handler.stream in proxies:
                self._restore.callback(handler.setStream, handler.stream)
                handler.setStream(proxies[handler.stream])
        for proxy in proxies.values():
            self._restore.callback(proxy.close)
        self._live.start()

    def close(self) -> None:
        """Remove the live line, and give the streams back."""
        self._restore.close()
        self._live.stop()

    def row(self, cells: Mapping[str, str]) -> None:
        """Print a row; a header where the columns are new, and again after some rows.

        Args:
            cells: by title, the most important first; those that do not fit are left out.
        """
        from rich.text import Text

        widths = fitting_columns(cells, self._console.width - 1)
        if list(widths) != self._titles or self._rows % REPEAT == 0:
            self._titles, self._rows = list(widths), 0
            self._print(Text(_aligned(widths, {title: title for title in widths}), style="bold"))
        self._rows += 1
        self._print(Text(_aligned(widths, cells)))

    def _print(self, line: Any) -> None:
        self._console.print(line, no_wrap=True, overflow="crop", highlight=False)


def fitting_columns(cells: Mapping[str, str], width: int) -> dict[str, int]:
    """Widths of the first columns that fit next to one another, by title."""
    found: dict[str, int] = {}
    for title, cell in cells.items():
        needed = max(len(title), len(cell), 8)
        if found and sum(found.values()) + 2 * len(found) + needed > width:
            break
        found[title] = needed
    return found


def _aligned(widths: Mapping[str, int], cells: Mapping[str, str]) -> str:
    return "  ".join(cells[title].rjust(width) for title, width in widths.items())


def _handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Every handler of `logging` that writes to a stream."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", []):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler
