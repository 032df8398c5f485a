"""docs/troubleshooting.md quotes messages that the code prints; docs/README.md lists every page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    message
    for message in re.findall(r"^\| `([^`]+(?:`[^`|]+`[^`|]*)*)` ?[^|]*\|", PAGE, re.MULTILINE)
    if "..." in message and not message.startswith("torch.")
]
PLACEHOLDER = "\0"


def literals() -> list[str]:
    """Every text in the code; what an f-string fills in is a placeholder."""
    found = []
    for path in (ROOT / "guardlit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else PLACEHOLDER for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


CODE = "\n".join(literals())


@pytest.mark.parametrize("message", QUOTED)
def test_the_code_says_so(message: str):
    """Each piece between the dots stands in one text of the code."""
    pieces = [piece.strip(" ;:(),") for piece in message.split("...")]
    for piece in (piece for piece in pieces if len(piece) > 3):
        assert piece in CODE, piece


def test_messages_were_found():
    assert len(QUOTED) >= 20


def test_what_the_code_does_not_say_is_noticed():
    assert "its weights are of the variant bf17 only" not in CODE


def test_the_index_lists_every_page_and_notebook_once():
    """docs/index.md, the front page of the site, shows this list."""
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    linked = re.findall(r"^- \[[^\]]+\]\((?:\./)?([^)]+)\)", index, re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md", "index.md"}
    notebooks = {f"../notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert pages | notebooks <= set(linked)
    assert len(linked) == len(set(linked))
