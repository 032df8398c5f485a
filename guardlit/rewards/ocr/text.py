"""The text that a prompt quotes, and its distance from the text that was read."""

from __future__ import annotations

import re

_QUOTED = re.compile(r'"([^"“”]*)"|“([^"“”]*)”')
_QUOTE = re.compile('["“”]')


def quoted_texts(prompt: str) -> list[str]:
    """The texts in double quotes, straight or curly, in order and as written; an apostrophe is not a quote.

    Raises:
        ValueError: no quotes, quotes without text between them, or unbalanced or nested quotes.
    """
    texts = [straight or curly for straight, curly in _QUOTED.findall(prompt)]
    if _QUOTE.search(_QUOTED.sub("", prompt)):
        raise ValueError(f'prompt {prompt!r}: its quotes do not pair up; put the text to be drawn in "..." or “...”')
    if not texts:
        raise ValueError(f'prompt {prompt!r}: no text in quotes; put the text to be drawn in "..." or “...”')
    if not all(map(squeezed, texts)):
        raise ValueError(f"prompt {prompt!r}: holds quotes without text; put the text to be drawn between them")
    return texts


def squeezed(text: str) -> str:
    """Without white space, in lower case, for the comparison."""
    return "".join(text.split()).lower()


def accuracy(target: str, read: str) -> float:
    """Fraction of a target that was read, in [0, 1]: the reward of Flow-GRPO (arXiv:2505.05470).

    1 where the target is part of what was read, otherwise 1 - min(d, n) / n with the Levenshtein distance d of both
    and n characters of the target. White space and case are ignored.
    """
    from rapidfuzz.distance import Levenshtein

    target, read = squeezed(target), squeezed(read)
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(target, read), len(target)) / len(target)
