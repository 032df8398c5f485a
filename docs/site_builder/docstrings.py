"""Docstrings mark code, tables and blocks as Markdown does; autodoc reads reStructuredText."""

from __future__ import annotations

import re
from collections.abc import Iterator

FENCE = re.compile(r"(\s*)```(\w*)$")
ROW = re.compile(r"(\s*)\|(.*)\|$")
CODE = re.compile(r"((?<!`)`[^`]+`(?!`))")


def as_rest(lines: list[str]) -> list[str]:
    """A docstring in reStructuredText.

    Args:
        lines: of the docstring, in Markdown with Google's sections.
    """
    return list(_blocks(iter(_joined(lines))))


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    table: list[str] = []
    for line in lines:
        row = ROW.match(line)
        if table and not row:
            yield from _table(table)
            table = []
        if fence := FENCE.match(line):
            yield from _code(fence, lines)
        elif row:
            table.append(line)
        else:
            yield _text(line)
    yield from _table(table) if table else ()


def _code(fence: re.Match[str], lines: Iterator[str]) -> Iterator[str]:
    indent, language = fence.groups()
    yield from ("", f"{indent}.. code-block:: {language or 'text'}", "")
    for line in lines:
        if FENCE.match(line):
            break
        yield f"   {line}" if line else ""
    yield ""


def _table(rows: list[str]) -> Iterator[str]:
    (indent,) = re.findall(r"^\s*", rows[0])
    yield from ("", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", "")
    for row in rows:
        if set(row) <= set(" |-:"):
            continue
        for number, cell in enumerate(re.split(r"(?<!\\)\|", row.strip().strip("|"))):
            yield f"{indent}   {'-' if number else '* -'} {_text(cell.strip())}".replace("   -", "     -", 1)
    yield ""


def _text(line: str) -> str:
    """A line whose bars are no substitutions, and whose code may end within a word."""
    parts = CODE.split(line)
    for number, part in enumerate(parts):
        if number % 2:
            parts[number] = f"`{part}`"  # a literal, in which napoleon looks for no `type: text`
            continue
        text = part.replace("|", r"\|")
        parts[number] = "\\ " + text if number and text[:1].isalnum() else text
    return "".join(parts)


def _joined(lines: list[str]) -> Iterator[str]:
    """Lines whose code spans end where they begin: a span over a line's end is one."""
    held = ""
    for line in lines:
        text = f"{held} {line.strip()}" if held else line
        held = text if text.count("`") % 2 and not FENCE.match(text) else ""
        if not held:
            yield text
    if held:
        yield held
