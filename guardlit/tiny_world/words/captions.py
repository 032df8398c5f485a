"""Captions of the words world: they name text, color and background of a sign, or some of these."""

from __future__ import annotations

import random

from guardlit.tiny_world.words.signs import ALPHABET, BACKGROUNDS, COLORS, Sign

TEMPLATE = 'a {color} sign that says "{text}" on {background}'
"""The wording of the prompts; the others are for training."""
TEMPLATES = (
    TEMPLATE,
    TEMPLATE,
    TEMPLATE,
    'a {color} sign that says "{text}"',
    'a sign that says "{text}" on {background}',
    'a sign that says "{text}"',
)
MAX_TOKENS = 14
"""Tokens of a caption for CLIP and for T5, with end marks: each character of a text and each quote is one."""
PROMPT_DROPOUT = 0.1
WRONG_CHARACTERS = 0.2
"""Probability that a training caption names a random character: the base model's deliberate weakness."""


def vocabulary() -> list[str]:
    """All words of the captions, without the texts of the signs, which are spelled."""
    return [TEMPLATE.replace('"{text}" ', "").format(color=c, background=b) for c in COLORS for b in BACKGROUNDS]


def prompt(sign: Sign) -> str:
    """The prompt that asks for a sign."""
    return TEMPLATE.format(**vars(sign))


def draw_caption(sign: Sign, rng: random.Random) -> str:
    """A training caption: any wording, sometimes with wrong characters, sometimes empty."""
    if rng.random() < PROMPT_DROPOUT:
        return ""
    text = "".join(rng.choice(ALPHABET) if rng.random() < WRONG_CHARACTERS else character for character in sign.text)
    return rng.choice(TEMPLATES).format(text=text, color=sign.color, background=sign.background)
