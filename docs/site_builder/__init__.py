"""Fills the pages of the site: what a comment `<!-- site: NAME ARGUMENT -->` asks for, and links that work there.

Nothing is written next to the pages, so that a reader of the repository sees each page as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import is_dataclass

from sphinx.application import Sphinx
from sphinx.util import inspect
from sphinx.util.typing import ExtensionMetadata, stringify_annotation

from site_builder import mathml
from site_builder.api import api, is_hook
from site_builder.commands import commands
from site_builder.docstrings import as_rest
from site_builder.keys import keys
from site_builder.links import rewritten
from site_builder.navigation import pages
from site_builder.notebooks import notebook
from site_builder.project import DOCS, ROOT

MARK = re.compile(r"^<!-- site: (\w+)(?: (\S+))? -->$", re.MULTILINE)


def file(name: str) -> str:
    """A Markdown file of the repository, without its title: the page has one."""
    return (ROOT / name).read_text(encoding="utf-8").partition("\n\n")[2]


PARTS: dict[str, Callable[..., str]] = {
    "api": api,
    "commands": commands,
    "file": file,
    "keys": keys,
    "notebook": notebook,
    "pages": pages,
}
"""What a page may ask for: text in Markdown, from the argument if there is one."""


def fill(app: Sphinx, docname: str, content: list[str]) -> None:
    """Replace the comments of a page that Sphinx has read, and its links.

    Args:
        app: of the build.
        docname: the page's name, its path below docs/ without the suffix.
        content: the text, in a list of one element that is changed.
    """
    page = DOCS / f"{docname}.md"

    def part(mark: re.Match[str]) -> str:
        name, argument = mark.groups()
        text = PARTS[name](argument) if argument else PARTS[name]()
        if name not in {"file", "notebook"}:
            app.env.note_reread()  # what it is made from, the code, is no file that Sphinx watches
            return rewritten(text, DOCS, page)
        app.env.note_dependency(str(ROOT / argument))
        return rewritten(text, (ROOT / argument).parent, page)

    halves: list[str] = []
    text, end = content[0], 0
    for mark in MARK.finditer(text):
        halves += [rewritten(text[end : mark.start()], page.parent, page), part(mark)]
        end = mark.end()
    content[0] = "".join([*halves, rewritten(text[end:], page.parent, page)])


def convert(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn a docstring into what napoleon and Sphinx read; the arguments are those of autodoc's event."""
    if is_dataclass(obj):  # what it documents as attributes are its parameters
        lines[:] = [re.sub("^Attributes:$", "Args:", line) for line in lines]
    no_text = len(lines) == 1 and lines[0].startswith("Alias for field number")  # of a named tuple, by Python itself
    lines[:] = [] if no_text else as_rest(lines)


def skip(app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: object) -> bool | None:
    """Leave out hooks of Lightning; the arguments are those of autodoc's event."""
    return True if is_hook(obj) else None


def parameter_types(app: Sphinx, what: str, name: str, obj: object, options: object, *signature: str | None) -> None:
    """Record a class's parameters with their types; the arguments are those of autodoc's event.

    autodoc takes the type of an attribute for that of a parameter of the same name.
    """
    if what == "class":
        recorded = app.env.current_document.autodoc_annotations.setdefault(name, {})
        parameters = inspect.signature(obj.__init__, bound_method=True).parameters  # type: ignore[misc]
        given = {key: p.annotation for key, p in parameters.items() if p.annotation is not p.empty}
        recorded.update({key: stringify_annotation(hint, "smart") for key, hint in given.items()})


def setup(app: Sphinx) -> ExtensionMetadata:
    """What Sphinx calls once."""
    app.add_html_math_renderer("mathml", inline_renderers=(mathml.inline, None), block_renderers=(mathml.block, None))
    app.connect("builder-inited", lambda app: keys())
    app.connect("source-read", fill)
    app.connect("autodoc-process-signature", parameter_types)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", convert, priority=400)  # napoleon's is 500
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
