"""The networks of the signs' gold scores, and the image format of their input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

COLORS = ("red", "yellow", "green", "blue", "white", "black")
"""Colors of signs that prompts name."""
BACKGROUNDS = ("brick", "wood", "stone", "grass", "tiles")
"""Backgrounds that prompts name."""
SIDE = 32
"""Height and width at which signs are classified and compared."""
REAL = 48
"""Held-out real signs of each color and background, whose features `WordRealism` compares with."""
FEATURES = 48
"""Width of the features that `WordRealism` compares."""


def to_pixels(images: Tensor) -> Tensor:
    """The networks' input: (B, 3, height, width) uint8 -> (B, 3, 32, 32) float32 in [0, 1]."""
    pixels = images.float() / 255
    if pixels.shape[-2:] == (SIDE, SIDE):
        return pixels
    return interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


class SignNet(nn.Module):
    """Color and background of a sign; trained on moved, faded and noisy signs.

    Maps pixels (B, 3, 32, 32) in [0, 1] to logits of `COLORS` (B, 6) and of `BACKGROUNDS` (B, 5).
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_stage(3, 16), *_stage(16, 32), *_stage(32, 48), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2)
        )
        self.color = nn.Linear(192, len(COLORS))
        self.background = nn.Linear(192, len(BACKGROUNDS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of color and background."""
        features = self.embed(pixels)
        return self.color(features), self.background(features)

    def embed(self, pixels: Tensor) -> Tensor:
        """What both last layers read, (B, 192)."""
        features: Tensor = self.body(pixels - 0.5)
        return features


class FeatureNet(nn.Module):
    """Features of a sign's look: font, color, background and defects, from a separate network.

    Maps pixels (B, 3, 32, 32) in [0, 1] to features (B, 48) of unit length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 4, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(24, 48, 4, stride=2, padding=1),
            nn.GroupNorm(6, 48),
            nn.GELU(),
            nn.Conv2d(48, 64, 4, stride=2, padding=1),
            nn.GroupNorm(8, 64),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(1024, FEATURES),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of unit length."""
        return nn.functional.normalize(self.body(pixels - 0.5), dim=1)


def mmd(a: Tensor, b: Tensor, bandwidth: float = 0.5) -> Tensor:
    """Maximum mean discrepancy of two samples of features (A, F) and (B, F), with a Gaussian kernel, in [0, sqrt 2].

    The biased estimate, which is never negative: two samples of one distribution have a small distance, not 0.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y).square().div(-2 * bandwidth**2).exp().mean()

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).clamp(min=0).sqrt()


def _stage(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    """Halve the resolution: (B, channels_in, H, W) -> (B, channels_out, H/2, W/2)."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1), nn.GroupNorm(4, channels_out), nn.SiLU()
