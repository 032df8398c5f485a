"""Images of the digits world's base model, and their scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guardlit.rewards.base import Scorer
from guardlit.rewards.bundled import rms_distances
from guardlit.rewards.digits.networks import DIGITS
from guardlit.rewards.digits.scorers import DigitDiversity, DigitGold, DigitProbability, DigitRealism
from guardlit.sde import FlowSDE
from guardlit.tiny_world.drawing import draw
from guardlit.types import RewardRequest, RewardResult


def prompts() -> list[str]:
    """The ten canonical prompts, "a handwritten zero" to "a handwritten nine"."""
    return [f"a handwritten {word}" for word in DIGITS]


def measure(pipeline: Any, scorers: str, noise_level: float, per_prompt: int, seed: int = 0) -> dict[str, float]:
    """Score new images of the ten prompts.

    Args:
        pipeline: the tiny `StableDiffusion3Pipeline`.
        scorers: folder of the scorers' weights.
        noise_level: of `FlowSDE`; 0 is the Euler ODE.
        per_prompt: images of each prompt.
        seed: of the noise.

    Returns:
        `*_success` is the fraction of images that the classifier takes for the requested digit; the others are mean
        scores in the scorers' units.
    """
    texts = [text for text in prompts() for _ in range(per_prompt)]
    images = draw(pipeline, texts, FlowSDE(noise_level), seed)
    request = RewardRequest(images, texts, [{}] * len(texts))
    proxy, gold, realism, diversity = (
        _score(scorer, request)
        for scorer in (DigitProbability(scorers), DigitGold(scorers), DigitRealism(scorers), DigitDiversity())
    )
    return {
        "proxy_success": proxy.details["success"].mean().item(),
        "proxy_probability": proxy.values.mean().item(),
        "gold_success": gold.details["success"].mean().item(),
        "gold_probability": gold.values.mean().item(),
        "realism": realism.values.mean().item(),
        "diversity": diversity.values.mean().item(),
    }


def measure_real(gray: Tensor, labels: Tensor) -> dict[str, float]:
    """Realism and diversity of the real digits, as a bound for images.

    Args:
        gray: the real digits in [0, 1], (N, 1, 32, 32).
        labels: (N,).

    Returns:
        Mean distance of a real digit to the nearest other one, and to all others of its label.
    """
    distances = rms_distances(gray, gray)
    same = (labels[:, None] == labels[None]).fill_diagonal_(False)
    return {
        "real_realism_without_itself": distances.clone().fill_diagonal_(torch.inf).amin(dim=1).mean().item(),
        "real_diversity": ((distances * same).sum(dim=1) / same.sum(dim=1)).mean().item(),
    }


def _score(scorer: Scorer, request: RewardRequest) -> RewardResult:
    scorer.setup(torch.device("cpu"))
    return scorer.score(request)
