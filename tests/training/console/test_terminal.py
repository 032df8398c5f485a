"""The table above its live line, on pseudo-terminals whose screen is rendered."""

from __future__ import annotations

import logging
import re
import sys

import pytest
from screen import Terminal

from guardlit.training.console.terminal import REPEAT, Above, LiveTable, Status, fitting_columns, terminal
from guardlit.training.console.time_left import in_words

CELLS = {"round": "1/9", "proxy": "0.640", "clipped": "0.39", "validation": "", "gold": "", "time": "12 s"}
NUMBERS = ("3 h 20 min left", "proxy 0.640", "clipped 0.39")


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch):
    """Makes a terminal of so many columns the standard error and output of this process."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def make(columns: int) -> Terminal:
        monkeypatch.setenv("COLUMNS", str(columns))  # rich asks the terminal of the process that imported it
        screen = Terminal(columns)
        for name in ("stderr", "stdout", "__stderr__", "__stdout__"):
            monkeypatch.setattr(sys, name, screen.stream)
        return screen

    return make


def filled(log: logging.Logger) -> None:
    """A table of 30 rows, with output of every kind between them."""
    step = [0]
    console = terminal()
    assert console is not None
    table = LiveTable(console, lambda: Status("round 1/9  rollout ", step[0], 30, NUMBERS))
    table.open()
    for number in range(30):
        step[0] = number
        table._live.refresh()
        log.info("logged %d", number)
        print(f"printed {number}")
        sys.stderr.write(f"in {number}")
        table._live.refresh()
        sys.stderr.write(" parts\n")
        print(f"\rloading {number} 10%\rloading {number} 100%", file=sys.stderr)
        table.row({**CELLS, "round": f"{number}/30"})
    sys.stderr.write("library.py:7: UserWarning: a warning\n  two lines\n")
    print("no end", end="")
    table.close()


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("no_color", [False, True])
def test_no_line_is_mixed_with_another(on_terminal, columns: int, no_color: bool, monkeypatch: pytest.MonkeyPatch):
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    with on_terminal(columns) as screen:
        log = logging.getLogger("a library")
        log.propagate = False
        monkeypatch.setattr(log, "handlers", [logging.StreamHandler(screen.stream)])
        log.setLevel(logging.INFO)
        filled(log)
        log.info("after")
        assert sys.stderr is screen.stream
        assert log.handlers[0].stream is screen.stream  # type: ignore[attr-defined]
    header = "   round     proxy   clipped  validation      gold      time"
    titles = header[: columns - 1] if columns > 60 else header.removesuffix("      time")
    expected = []
    for number in range(30):
        plain = [f"logged {number}", f"printed {number}", f"in {number} parts", f"loading {number} 100%"]
        row = "  ".join([f"{number}/30".rjust(8), "   0.640", "    0.39", " " * 10, " " * 8, "    12 s"])
        expected += [*plain, *([titles] if number % REPEAT == 0 else []), row[: len(titles)].rstrip()]
    assert screen.lines == [*expected, "library.py:7: UserWarning: a warning", "  two lines", "no end", "after"]
    assert re.search(r"round 1/9  rollout  .* 17/30  3 h 20 min left", screen.text)
    assert bool(re.search(rb"\x1b\[[0-9;]*(3[0-7]|38;|9[0-7])[0-9;]*m", screen.raw)) is not no_color


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_the_live_line_is_one_line(on_terminal, columns: int):
    with on_terminal(columns) as screen:
        console = terminal()
        assert console is not None
        status = Status("round 1/9  rollout ", 7, 30, NUMBERS)
        assert len(console.render_lines(status, pad=False)) == 1
        console.print(status, end="^C^C")  # which the terminal echoes
    (line,) = screen.lines
    assert line.startswith("round 1/9")
    assert [number in line for number in NUMBERS] == [columns >= 60, columns >= 80, columns >= 120]


def test_columns_are_left_out_from_the_right():
    assert list(fitting_columns(CELLS, 200)) == list(CELLS)
    assert list(fitting_columns(CELLS, 59)) == list(CELLS)[:5]
    assert list(fitting_columns(CELLS, 1)) == ["round"]


def test_a_long_path_is_not_cut(on_terminal):
    path = "/a/long/path/" + "x" * 70
    with on_terminal(60) as screen:
        console = terminal()
        assert console is not None
        Above(console, screen.stream).write(f"written to {path}\n")
    assert f"written to {path}".encode() in screen.raw
    assert "".join(screen.lines) == f"written to {path}"


def test_only_a_terminal_that_can_move_its_cursor_counts(on_terminal, monkeypatch: pytest.MonkeyPatch):
    assert terminal() is None  # pytest's capture
    with on_terminal(80):
        assert terminal() is not None
        monkeypatch.setenv("TERM", "dumb")
        assert terminal() is None


def test_a_file_is_no_terminal_whatever_the_variables_say(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert terminal() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (425, "7 min 05 s"),
        (3599.9, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (86_400 * 2 + 18_000, "2 d 5 h"),
        (-1, "0 s"),
    ],
)
def test_durations(seconds: float, text: str):
    assert in_words(seconds) == text
