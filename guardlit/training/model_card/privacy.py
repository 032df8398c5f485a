"""Texts without what names a person or a machine: folders, servers, secrets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from guardlit.files import HOST

_URL = re.compile(r"\b(?!https://huggingface\.co)[a-z][a-z0-9+.-]*://(?P<place>[^\s\"'/]+)[^\s\"',\]})]*")
_OWN = re.compile(r"guardlit://")
_PATH = re.compile(r"(?<![\w.:/-])(?:~|\.{1,2}(?=/)|[A-Za-z]:(?=\\)|(?=/))(?:[/\\][^\s\"',:;\]})=\\/]+)+[/\\]?")
_SECRET = re.compile(r"(token|secret|password|api_?key|credential)s?\b", re.IGNORECASE)
_SECRET_IN_MAPPING = re.compile(
    r"""(["']?[\w.-]*(?:token|secret|password|api_?key|credential)s?["']?\s*:\s*)("[^"]*"|'[^']*'|[^\s,}\]]+)""",
    re.IGNORECASE,
)


def public(text: str) -> str:
    """The text with paths reduced to their last name, and without servers, the home folder and this machine's name."""
    text = _URL.sub(lambda match: match[0] if _OWN.match(match[0]) else "<server>", text)
    text = _PATH.sub(lambda match: re.split(r"[/\\]", match[0].rstrip("/\\"))[-1], text)
    for name in (str(Path.home()), HOST):
        if len(name) > 1:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<private>", text)
    return text


def public_command(words: Sequence[str]) -> str:
    """A command line as one types it, of public texts; the values of secrets are left out."""
    shown: list[str] = []
    hidden = False
    for word in words:
        name, given, _ = word.partition("=")
        if hidden and not word.startswith("--"):
            shown.append("***")
        elif name.startswith("--") and given and _SECRET.search(name):
            shown.append(f"{name}=***")
        else:
            shown.append(_SECRET_IN_MAPPING.sub(r"\1***", public(word)))
        hidden = word.startswith("--") and not given and _SECRET.search(word) is not None
    return shlex.join(shown)
