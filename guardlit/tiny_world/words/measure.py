"""Real signs, corrupted ones and images of the words world's base model, with their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardlit.rewards.base import Scorer
from guardlit.rewards.ocr import OCR
from guardlit.rewards.words import WordBackground, WordColor, WordDiversity, WordRealism
from guardlit.sde import FlowSDE
from guardlit.tiny_world.drawing import draw
from guardlit.tiny_world.words.captions import prompt
from guardlit.tiny_world.words.scorers import DEFECTS, to_tensor
from guardlit.tiny_world.words.signs import Array, Sign, draw_sign, random_sign
from guardlit.types import RewardRequest

GROUP = 8
"""Images of a prompt, for the scores that compare them."""
OCR_SIDE = 128
"""The OCR scorer enlarges a sign to it: above that, it reads no better and takes longer."""


def asked_signs(count: int, seed: int) -> list[Sign]:
    """`count` signs in groups of `GROUP`, whose text, color and background are a group's; fonts differ."""
    rng = np.random.default_rng(seed)
    groups = [random_sign(rng) for _ in range(-(-count // GROUP))]
    fonts = [random_sign(rng).font for _ in range(count)]
    return [replace(groups[i // GROUP], font=font) for i, font in enumerate(fonts)]


def measure(pipeline: Any, scorers: str, noise_level: float, count: int, seed: int = 0) -> dict[str, float]:
    """Score new images of random prompts.

    Args:
        pipeline: the tiny `StableDiffusion3Pipeline`.
        scorers: folder of the gold scorers' files.
        noise_level: of `FlowSDE`; 0 is the Euler ODE.
        count: images, `GROUP` for each prompt.
        seed: of prompts and noise.

    Returns:
        See `scores`.
    """
    texts = [prompt(sign) for sign in asked_signs(count, seed)]
    images = [draw(pipeline, texts[i : i + 80], FlowSDE(noise_level), seed + i) for i in range(0, count, 80)]
    return scores(torch.cat(images), texts, scorers)


def measure_real(scorers: str, count: int, seed: int) -> dict[str, dict[str, float]]:
    """Scores of new real signs and of signs with each defect, as bounds for images; see `scores`."""

    def measured(draw_one: Callable[[Sign, np.random.Generator], Array]) -> dict[str, float]:
        rng, signs = np.random.default_rng(seed), asked_signs(count, seed)
        pictures = np.stack([draw_one(sign, rng) for sign in signs])
        return scores(to_tensor(pictures), [prompt(sign) for sign in signs], scorers)

    return {"real": measured(draw_sign), **{name: measured(defect) for name, defect in DEFECTS.items()}}


def scores(images: Tensor, texts: list[str], scorers: str) -> dict[str, float]:
    """Mean scores of images (B, 3, H, W) uint8 for their prompts; `ocr_exact` counts images with the text alone."""
    request = RewardRequest(images, texts, [{}] * len(texts))
    values: dict[str, float] = {}
    gold = (WordColor(scorers), WordBackground(scorers), WordRealism(scorers), WordDiversity())
    for scorer in (OCR(side=OCR_SIDE), *gold):
        values |= _score(scorer, request)
    return values


def _score(scorer: Scorer, request: RewardRequest) -> dict[str, float]:
    scorer.setup(torch.device("cpu"))
    try:
        result = scorer.score(request)
    finally:
        scorer.close()
    details = {f"{scorer.name}_{name}": detail.mean().item() for name, detail in result.details.items()}
    return {scorer.name: result.values.mean().item(), **details}
