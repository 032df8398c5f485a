"""The two small digit classifiers, and the image format of their input and of the real digits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 32
"""Height and width at which digits are drawn, classified and compared."""


def upscale(digits: Tensor) -> Tensor:
    """Enlarge scikit-learn's digits smoothly: (N, 8, 8) levels 0 to 16 -> (N, 1, 32, 32) uint8."""
    gray = interpolate(digits[:, None].float() / 16, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return (gray.clamp(0, 1) * 255).round().to(torch.uint8)


def to_gray(images: Tensor) -> Tensor:
    """RGB to the classifiers' input: (B, 3, height, width) uint8 -> (B, 1, 32, 32) float32 in [0, 1]."""
    gray = images.float().mean(dim=1, keepdim=True) / 255
    if gray.shape[-2:] == (SIDE, SIDE):
        return gray
    return interpolate(gray, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


class ProxyNet(nn.Sequential):
    """A perceptron on 16 x 16 pixels: fast, accurate on real digits and easy to fool.

    Maps gray images (B, 1, 32, 32) in [0, 1] to logits (B, 10).
    """

    def __init__(self) -> None:
        super().__init__(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


class GoldNet(nn.Sequential):
    """A convolutional network, trained on distorted and noisy digits: slower, and harder to fool.

    Maps gray images (B, 1, 32, 32) in [0, 1] to logits (B, 10).
    """

    def __init__(self) -> None:
        super().__init__(
            *_stage(1, 16),
            *_stage(16, 32),
            *_stage(32, 64),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(256, 10),
        )


def _stage(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    """Halve the resolution: (B, channels_in, H, W) -> (B, channels_out, H/2, W/2)."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), nn.GroupNorm(4, channels_out), nn.SiLU()
