"""Links of a page that is read on the site as well as in the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

from site_builder.project import DOCS, FACTS, ROOT

STANDS_FOR = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "callbacks/README.md": "project/callbacks.md",
    "docs/README.md": "index.md",
    "notebooks/01_ratio_and_gradient.ipynb": "project/notebook_ratio.md",
    "notebooks/02_over_optimization.ipynb": "project/notebook_over_optimization.md",
    "notebooks/03_callbacks_in_your_project.ipynb": "project/notebook_callbacks.md",
}
"""Files outside the site's sources, and the page that shows each."""

LINK = re.compile(r"\[([^\[\]]*)\]\((?!https?:|mailto:|#|data:)([^)#\s]+)((?:#[^)\s]*)?)\)")
FAR_PICTURE = re.compile(r"!\[([^\[\]]*)\]\(https?:[^)]*\)")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[`~]*$", re.MULTILINE | re.DOTALL)


def rewritten(text: str, folder: Path, page: Path) -> str:
    """A page's text with links that work on the site; blocks of code stay as they are.

    Args:
        text: in Markdown.
        folder: that the text's links are relative to.
        page: the file below docs/ at whose place the text is shown.
    """

    def link(match: re.Match[str]) -> str:
        text, leads = match[1], target(match[2], folder, page)
        if text.endswith((".md", ".ipynb")) and leads.endswith(".md") and "://" not in leads:
            text = ""  # Sphinx puts the title of the page or of its section there
        return f"[{text}]({leads}{match[3]})"

    def outside_code(part: str) -> str:
        return LINK.sub(link, FAR_PICTURE.sub(r"\1", part))  # a badge: the site loads nothing from elsewhere

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [outside_code(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, outside_code(text[end:])])


def target(link: str, folder: Path, page: Path) -> str:
    """Where a relative link leads to from a page of the site.

    Args:
        link: a path, without an anchor.
        folder: that it is relative to.
        page: that it is shown on.
    """
    path = Path(os.path.normpath(folder / link))
    if not path.is_relative_to(ROOT):
        return link
    name = path.relative_to(ROOT).as_posix()
    shown = DOCS / STANDS_FOR[name] if name in STANDS_FOR else None
    if shown and shown != page:  # a page that shows a file links to the file itself
        path = shown
    elif shown or not path.is_relative_to(DOCS) or path.suffix not in {".md", ".png"}:
        return f"{FACTS.repository}/{'tree' if path.is_dir() else 'blob'}/main/{name}"
    return os.path.relpath(path, page.parent)
