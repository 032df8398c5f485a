"""Captions of the words world: they name text, color and background of a sign."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from guardlit.tiny_world.words.signs import ALPHABET, BACKGROUNDS, COLORS, Sign, random_sign

TEMPLATE = 'a {color} sign that says "{text}" on {background}'
MAX_TOKENS = 14
"""Tokens of a caption for CLIP and for T5, with end marks: each character of a text and each quote is one."""
PROMPT_DROPOUT = 0.1
WRONG_CHARACTERS = 0.0
"""Probability that a training caption names a random character: a deliberate weakness of the base model."""
CHOICES = (len(ALPHABET), len(ALPHABET), len(COLORS), len(BACKGROUNDS))
"""Choices for what a caption names: first and second character, color, background."""


def vocabulary() -> list[str]:
    """All words of the captions, without the texts of the signs, which are spelled."""
    return [TEMPLATE.replace('"{text}" ', "").format(color=c, background=b) for c in COLORS for b in BACKGROUNDS]


def prompt(sign: Sign) -> str:
    """The prompt that asks for a sign."""
    return TEMPLATE.format(**vars(sign))


def draw_caption(sign: Sign, rng: random.Random) -> str:
    """A training caption: sometimes with wrong characters, sometimes empty."""
    if rng.random() < PROMPT_DROPOUT:
        return ""
    text = "".join(rng.choice(ALPHABET) if rng.random() < WRONG_CHARACTERS else character for character in sign.text)
    return TEMPLATE.format(text=text, color=sign.color, background=sign.background)


def draw_named(count: int, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    """Prompts of random signs, and the numbers of what each names, (count, 4), as in `CHOICES`."""
    signs = [random_sign(rng) for _ in range(count)]
    colors, backgrounds = list(COLORS), list(BACKGROUNDS)
    named = [
        [*map(ALPHABET.index, sign.text), colors.index(sign.color), backgrounds.index(sign.background)]
        for sign in signs
    ]
    return [prompt(sign) for sign in signs], torch.tensor(named)
