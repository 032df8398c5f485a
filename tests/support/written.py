"""Images with text in them, as large as it fits."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from guardlit.types import RewardRequest

PHRASES = [
    "Spring Collection 2024",
    "Step Goal Achieved",
    "Forever Yours",
    "OPEN",
    "Quantum Physics 101",
    "Happy Birthday!",
    "Beware of the Dog",
    "Mind the Gap",
    "Code & Coffee",
    "Exit 42",
]
FONTS = ["DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Oblique.ttf", "STIXGeneral.ttf"]


def written(text: str, size: int, font: str = FONTS[0], seed: int = 0) -> Tensor:
    """A text in a dark color somewhere on a light one, (3, size, size) uint8."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), tuple(rng.integers(120, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    points = next(p for p in itertools.count(size // 6, -1) if draw.textlength(text, _font(font, p)) <= 0.9 * size)
    place = (size / 2, size * rng.uniform(0.2, 0.8))
    draw.text(place, text, font=_font(font, points), fill=tuple(rng.integers(0, 90, 3).tolist()), anchor="mm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def sign_request(*texts: str, size: int = 256, wanted: tuple[str, ...] = ()) -> RewardRequest:
    """Images of the texts; their prompts quote `wanted`, or the same texts."""
    images = torch.stack([written(text, size) for text in texts])
    return RewardRequest(images, [f'a sign "{text}"' for text in wanted or texts], [{}] * len(texts))


@cache
def _font(name: str, points: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), points)
