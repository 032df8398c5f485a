"""Texts of the parsers as Markdown."""

from __future__ import annotations

import re


def marked(text: str) -> str:
    """A text whose options are code, so that no two hyphens become a dash, and whose brackets are no HTML.

    Args:
        text: of an option, in which code stands between backticks.
    """
    parts = re.split(r"(`+[^`]*`+)", text.replace("%%", "%"))
    for number in range(0, len(parts), 2):
        escaped = re.sub(r"[<*]", r"\\\g<0>", parts[number])
        parts[number] = re.sub(r"(?<![\w-])--[A-Za-z][\w.-]*\b", r"`\g<0>`", escaped)
    return "".join(parts)
