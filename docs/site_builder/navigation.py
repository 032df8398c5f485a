"""The site's navigation: sections and order are those of docs/README.md."""

from __future__ import annotations

import re

from site_builder.links import target
from site_builder.project import DOCS

INDEX = DOCS / "README.md"


def sections() -> dict[str, list[str]]:
    """Titles of docs/README.md, each with the paths that its bullets link to, as they stand there."""
    found: dict[str, list[str]] = {}
    for line in INDEX.read_text(encoding="utf-8").splitlines():
        if title := re.fullmatch(r"\*\*(.+)\*\*", line):
            found[title[1]] = []
        elif bullet := re.match(r"- \[[^\]]+\]\(([^)]+)\)", line):
            found[list(found)[-1]].append(bullet[1])
    return found


def pages() -> str:
    """All pages: docs/README.md's list, and a table of contents a section for the theme."""
    text = INDEX.read_text(encoding="utf-8")
    listed = text[text.index("**") :]
    trees = []
    for title, links in sections().items():
        names = [target(link, DOCS, DOCS / "index.md").removesuffix(".md") for link in links]
        trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *names, "```"]))
    return "\n\n".join([re.sub(r"^\*\*(.+)\*\*$", r"### \1", listed, flags=re.MULTILINE), *trees])
