"""The text that a prompt quotes, and its distance from the text that was read."""

# ruff: noqa: RUF001 - it is about characters that look alike

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set

_QUOTED = re.compile(r'"([^"“”]*)"|“([^"“”]*)”')
_QUOTE = re.compile('["“”]')

_BEFORE = str.maketrans(dict.fromkeys("º˚∘", "°") | {"´": "'"})
"""Look-alikes of marks that NFKC would turn into letters or spaces."""
_AFTER = str.maketrans(
    dict.fromkeys("‘’′`ʼʹ", "'")
    | dict.fromkeys("“”", '"')
    | dict.fromkeys("‐‑‒–—―−", "-")
    | dict.fromkeys("•∙⋅・", "·")
    | dict.fromkeys("⁄∕", "/")
    | dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο‹›⋯", [*"ABEZHIKMNOPTYXo<>", "..."], strict=True))
)
"""Characters that look the same to a recognizer, in the form that it gives."""
_LETTERS = str.maketrans({"æ": "ae", "œ": "oe", "ı": "i", "\u0307": None})
"""Small letters that are read as others; the dot is what remains of the Turkish capital I."""


def quoted_texts(prompt: str) -> list[str]:
    """The texts in double quotes, straight or curly, in order and as written; an apostrophe is not a quote.

    Raises:
        ValueError: no quotes, quotes without text between them, or unbalanced or nested quotes.
    """
    texts = [straight or curly for straight, curly in _QUOTED.findall(prompt)]
    if _QUOTE.search(_QUOTED.sub("", prompt)):
        raise ValueError('its quotes do not pair up; put the text to be drawn in "..." or “...”')
    if not texts:
        raise ValueError('no text in quotes; put the text to be drawn in "..." or “...”')
    if not all(map(squeezed, texts)):
        raise ValueError("it holds quotes without text; put the text to be drawn between them")
    return texts


def squeezed(text: str) -> str:
    """A text for the comparison: without white space, invisible characters and pictographs, and case folded.

    Accents are composed, ligatures and wide characters are taken apart (NFKC), and kinds of quotes, dashes, bullets and
    degree signs are one kind each.
    """
    text = unicodedata.normalize("NFKC", text.translate(_BEFORE)).translate(_AFTER).replace("''", '"')
    text = unicodedata.normalize("NFC", text.casefold().translate(_LETTERS))
    return "".join(c for c in text if not (c.isspace() or _no_text(c)))


def _no_text(character: str) -> bool:
    """Whether a character has no shape, such as a joiner, or is a pictograph, such as a star or an emoji."""
    kind = unicodedata.category(character)
    return kind in ("Cf", "Cc") or "\ufe00" <= character <= "\ufe0f" or (kind == "So" and character not in "°©®")


def legible(text: str, known: Set[str]) -> str:
    """A target, `squeezed`, without the marks that a recognizer cannot read, such as an inverted exclamation mark.

    Args:
        text: as it is quoted.
        known: characters that the recognizer knows, squeezed.

    Raises:
        ValueError: letters or digits that it does not know, or nothing that it knows.
    """
    target = squeezed(text)
    unknown = [c for c in dict.fromkeys(target) if c not in known]
    if letters := [c for c in unknown if unicodedata.category(c)[0] in "LN"]:
        shown = " ".join(letters[:10]) + (" ..." if len(letters) > 10 else "")
        raise ValueError(
            f'the recognizer cannot read {shown} in "{text}"; it reads European letters in Latin script, Chinese and '
            "Japanese"
        )
    if not (target := "".join(c for c in target if c in known)):
        raise ValueError(f'the recognizer cannot read any of "{text}"; quote a text of letters or digits')
    return target


def accuracy(target: str, read: str) -> float:
    """Fraction of a target that was read, in [0, 1]: the reward of Flow-GRPO (arXiv:2505.05470).

    1 where the target is part of what was read, otherwise 1 - min(d, n) / n with the Levenshtein distance d of both
    and n characters of the target. Both are compared as `squeezed` gives them.
    """
    from rapidfuzz.distance import Levenshtein

    target, read = squeezed(target), squeezed(read)
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(target, read), len(target)) / len(target)
