"""Captions of the digits world."""

from __future__ import annotations

import torch
from torch import Tensor

from guardlit.rewards.digits.networks import DIGITS

TEMPLATES = ("a handwritten {}", "the handwritten digit {}", "a drawing of {}", "the digit {}", "the number {}", "{}")
MAX_TOKENS = 8
"""Tokens of a caption for CLIP and for T5, with end marks; diffusers takes it as `max_sequence_length`."""
PROMPT_DROPOUT = 0.1
WRONG_CAPTIONS = 0.27
"""Fraction of training images whose caption names a random digit: the base model's deliberate weakness."""


def captions() -> list[str]:
    """Every training caption; the digit of number i is i // (len(captions) // 10)."""
    return [t.format(name) for digit, word in enumerate(DIGITS) for t in TEMPLATES for name in (word, str(digit))]


def draw_captions(labels: Tensor, count: int) -> Tensor:
    """Caption numbers (B,) for digits (B,): any wording, sometimes a wrong digit, sometimes none (number `count`)."""
    per_digit = count // 10
    wrong = torch.rand(len(labels)) < WRONG_CAPTIONS
    named = torch.where(wrong, torch.randint(10, labels.shape), labels)
    chosen = named * per_digit + torch.randint(per_digit, labels.shape)
    return torch.where(torch.rand(len(labels)) < PROMPT_DROPOUT, count, chosen)
