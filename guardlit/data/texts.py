"""What the text of a prompt may be."""

from __future__ import annotations

import re
import unicodedata

from guardlit.errors import GuardlitError

MAX_CHARACTERS = 2000
"""The longest prompt that is taken for one. (Text encoders truncate much earlier, without harm.)"""

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # UTF-16 read as UTF-8, or half of a surrogate pair
_BYTE_ORDER_MARK = "\ufeff"
_JOINERS = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069"
"""Spaces without width, soft hyphens, direction marks."""
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Fillers and the blank Braille pattern, which Unicode counts as letters and symbols."""


def cleaned(text: str) -> str:
    """A prompt without byte order marks, which remain where files were joined, and without white space around it.

    Joiners and direction marks stay within a prompt, since emoji and some scripts need them, but not around it.
    """
    text = text.replace(_BYTE_ORDER_MARK, "")
    while (shorter := text.strip().strip(_JOINERS)) != text:
        text = shorter
    return text


def checked(place: str, text: object) -> str:
    """A prompt as it is used.

    Args:
        place: where it stands, for the message.
        text: as it was read.

    Raises:
        GuardlitError: it is no text, too long, or shows nothing.
    """
    if not isinstance(text, str):
        raise GuardlitError(f"{place}: the prompt is of type {type(text).__name__}, not a text")
    clean = cleaned(text)
    if _NOT_TEXT.search(clean):
        raise GuardlitError(f"{place}: the prompt holds a NUL or half a surrogate pair; save the file as UTF-8 text")
    if all(map(_invisible, clean)):
        found = f"holds only invisible characters ({_codes(text)})" if text.strip() else "is blank"
        raise GuardlitError(f"{place}: the prompt {found}; remove the line or write a prompt")
    if len(clean) > MAX_CHARACTERS:
        raise GuardlitError(f"{place}: the prompt has {len(clean)} characters, more than the {MAX_CHARACTERS} allowed")
    return clean


def _invisible(character: str) -> bool:
    kind = unicodedata.category(character)
    return character in _BLANK_LETTERS or kind in ("Cc", "Cf") or kind[0] in "MZ"


def _codes(text: str) -> str:
    """The distinct characters of a text as U+XXXX, at most three."""
    codes = [f"U+{ord(c):04X}" for c in dict.fromkeys(text) if not c.isspace()]
    return ", ".join(codes[:3]) + (", ..." if len(codes) > 3 else "")
