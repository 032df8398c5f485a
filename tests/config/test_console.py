"""Options and output of commands."""

from __future__ import annotations

import math

import pytest

from guardlit.config.console import Parser, show, table, times
from guardlit.errors import GuardlitError


@pytest.fixture
def parser() -> Parser:
    parser = Parser("guardlit try", usage_hint="(guardlit try --steps N)")
    parser.add_argument("--steps", type=int)
    return parser


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--stpes", "3"], "unknown option --stpes: did you mean --steps? (guardlit try --steps N)"),
        (["--stpes=3"], "unknown option --stpes=3: did you mean --steps? (guardlit try --steps N)"),
        (["--step", "3"], "unknown option --step: did you mean --steps? (guardlit try --steps N)"),
        (["--zzzzz"], "unknown option --zzzzz (guardlit try --steps N)"),
        (["--steps", "x"], "argument --steps: invalid int value: 'x' (guardlit try --steps N)"),
    ],
)
def test_a_mistake_is_one_error(parser: Parser, args: list[str], line: str):
    with pytest.raises(GuardlitError) as error:
        parser.parse(args)
    assert str(error.value) == line


def test_options_are_parsed(parser: Parser):
    assert parser.parse(["--steps", "3"]).steps == 3


def test_plain_output_is_wide_and_takes_no_markup(capsys: pytest.CaptureFixture[str]):
    cells = ["[bold]", *["x" * 40] * 3]
    show("[red]found[/red]", table(["a", *"bcd"], [cells], footer=["sum", *"123"]))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "[red]found[/red]"
    assert any(line.split() == cells for line in lines)  # none is folded at 80 characters
    assert lines[-1].split() == ["sum", "1", "2", "3"]


@pytest.mark.parametrize(("ratio", "text"), [(1.0, "1.00x"), (9.994, "9.99x"), (26.1, "26x"), (math.nan, "-")])
def test_ratios_are_short(ratio: float, text: str):
    assert times(ratio) == text
