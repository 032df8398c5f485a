"""Which text a prompt asks for, and how far a text that was read is from it."""

from __future__ import annotations

import re

_QUOTED = re.compile(r'"([^"“”]*)"|“([^"“”]*)”')
_QUOTE = re.compile('["“”]')


def quoted_texts(prompt: str) -> list[str]:
    """The texts in double quotes, straight or curly, in their order and as written; an apostrophe is no quote.

    Raises:
        ValueError: no quotes, quotes without text between them, or some that do not pair up or stand inside others.
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
    """Without white space, in lower case: what is compared."""
    return "".join(text.split()).lower()


def accuracy(target: str, read: str) -> float:
    """How much of a target was read, in [0, 1]: the reward of Flow-GRPO (arXiv:2505.05470).

    1 where the target is part of what was read, otherwise 1 - min(d, n) / n with the Levenshtein distance d of both
    and n characters of the target. White space and case play no part.
    """
    from rapidfuzz.distance import Levenshtein

    target, read = squeezed(target), squeezed(read)
    if target in read:
        return 1.0
    return 1 - min(Levenshtein.distance(target, read), len(target)) / len(target)
