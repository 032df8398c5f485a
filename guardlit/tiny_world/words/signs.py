"""The distribution of the words world: color pictures of signs, 64 x 64 pixels, drawn by `draw_sign`.

All values are independent and uniform unless stated; lengths are in pixels.
    text        two characters of `ALPHABET`, which PP-OCR hardly ever confuses at this size
    plate       one of `COLORS`, each channel moved by up to 12 levels; a rounded rectangle of 54 to 60 x 36 to 44 with
                corners of radius 2 to 8 and a border of 1.5 in the ink's color
    ink         near black on the light plates (yellow, white), near white on the others
    font        bold DejaVu Sans, Serif or Sans Mono, which come in matplotlib's wheel; 29 to 33 high
    placement   rotated by up to 3 degrees, moved by up to 2 along each axis
    background  one of `BACKGROUNDS`: brick, wood, stone, grass or tiles, each with its texture at a random place
    light       all levels times 0.88 to 1.08, and normal noise of 3 levels on each pixel and channel
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

SIDE = 64
ALPHABET = "24568AFKNPRY"
COLORS = {
    "red": (200, 35, 40),
    "yellow": (240, 200, 40),
    "green": (25, 130, 60),
    "blue": (35, 75, 190),
    "white": (236, 236, 230),
    "black": (34, 34, 38),
}
_LIGHT = ("yellow", "white")
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
_OVERSAMPLED = 3
_NOISE = 3.0

Array = np.ndarray


@dataclass(frozen=True)
class Sign:
    """What a picture shows."""

    text: str
    color: str
    background: str
    font: str


def random_sign(rng: np.random.Generator) -> Sign:
    """Any text, color, background and font, all equally probable."""
    text = "".join(rng.choice(list(ALPHABET), 2))
    return Sign(text, *(str(rng.choice(list(choices))) for choices in (COLORS, BACKGROUNDS, FONTS)))


def draw_signs(signs: list[Sign], rng: np.random.Generator) -> Array:
    """Pictures (N, 64, 64, 3) uint8 of signs."""
    return np.stack([draw_sign(sign, rng) for sign in signs])


def draw_sign(sign: Sign, rng: np.random.Generator, textured: bool = True) -> Array:
    """One picture (64, 64, 3) uint8; without texture, the background has its mean color everywhere."""
    plate = _draw_plate(sign, rng)
    behind = np.clip(BACKGROUNDS[sign.background](rng), 0, 255)
    if not textured:
        behind = behind.mean(axis=(0, 1))
    alpha = plate[..., 3:] / 255
    picture = plate[..., :3] * alpha + behind * (1 - alpha)
    picture = picture * rng.uniform(0.88, 1.08) + rng.normal(0, _NOISE, picture.shape)
    return to_levels(picture)


def to_levels(picture: Array) -> Array:
    """Round and clip to uint8."""
    return np.asarray(np.clip(picture, 0, 255).round(), dtype=np.uint8)


def _draw_plate(sign: Sign, rng: np.random.Generator) -> Array:
    """The plate with its text, (64, 64, 4) float64 RGBA."""
    from PIL import Image, ImageDraw

    scale, middle = _OVERSAMPLED, SIDE * _OVERSAMPLED / 2
    fill = tuple(np.clip(np.array(COLORS[sign.color]) + rng.uniform(-12, 12, 3), 0, 255).astype(int).tolist())
    ink = (25, 25, 28) if sign.color in _LIGHT else (245, 245, 245)
    size = Image.Resampling
    # everything outside the plate has the border's color with alpha 0, so that the plate's edge keeps its color
    layer = Image.new("RGBA", (SIDE * scale, SIDE * scale), (*ink, 0))
    canvas = ImageDraw.Draw(layer)
    width, height = rng.uniform(54, 60) * scale, rng.uniform(36, 44) * scale
    box = (middle - width / 2, middle - height / 2, middle + width / 2, middle + height / 2)
    radius, border = rng.uniform(2, 8) * scale, round(1.5 * scale)
    canvas.rounded_rectangle(box, radius=radius, fill=fill, outline=ink, width=border)
    font = _font(sign.font, round(rng.uniform(29, 33) * scale))
    canvas.text((middle, middle), sign.text, font=font, fill=ink, anchor="mm")
    moved = tuple(rng.uniform(-2, 2, 2) * scale)
    layer = layer.rotate(rng.uniform(-3, 3), size.BICUBIC, translate=moved, fillcolor=(*ink, 0))
    return np.asarray(layer.resize((SIDE, SIDE), size.BOX)).astype(np.float64)


@cache
def _font(name: str, size: int) -> Any:
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(os.path.join(get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def _brick(rng: np.random.Generator) -> Array:
    """Red bricks of 32 x 16 in a running bond with pale mortar."""
    tone, mortar = _bonded(rng, height=16, width=32, joint=2.5)
    levels = np.array([165.0, 80, 60]) + 12 * tone[..., None]
    return np.where(mortar[..., None], np.array([205.0, 195, 185]), levels)


def _tiles(rng: np.random.Generator) -> Array:
    """Pale blue tiles of 16 x 16 in a straight grid with dark joints."""
    tone, joint = _bonded(rng, height=16, width=16, joint=2.0, shifted=False)
    levels = np.array([150.0, 200, 215]) + 7 * tone[..., None]
    return np.where(joint[..., None], np.array([90.0, 120, 135]), levels)


def _wood(rng: np.random.Generator) -> Array:
    """Brown planks, 16 high, with grain along them."""
    tone, gap = _bonded(rng, height=16, width=4096, joint=2.0)
    grain = _smooth_noise(rng, 4)[:, :1] * 8
    levels = np.array([150.0, 105, 60]) + (14 * tone + grain)[..., None]
    return np.where(gap[..., None], np.array([85.0, 55, 30]), levels)


def _grass(rng: np.random.Generator) -> Array:
    """Green with coarse and fine blotches."""
    blotches = 12 * _smooth_noise(rng, 4) + 12 * _smooth_noise(rng, 16)
    return np.asarray([85.0, 150, 60] + blotches[..., None] * [1, 1, 0.6])


def _stone(rng: np.random.Generator) -> Array:
    """Gray with coarse and fine blotches."""
    blotches = 7 * _smooth_noise(rng, 4) + 14 * _smooth_noise(rng, 16)
    return np.asarray(np.full(3, 138.0) + blotches[..., None])


BACKGROUNDS: dict[str, Callable[[np.random.Generator], Array]] = {
    "brick": _brick,
    "wood": _wood,
    "stone": _stone,
    "grass": _grass,
    "tiles": _tiles,
}
"""What draws each background, (64, 64, 3) levels."""


def _bonded(
    rng: np.random.Generator, height: float, width: float, joint: float, shifted: bool = True
) -> tuple[Array, Array]:
    """A tone in [-1, 1] for each block of a bond, (64, 64), and where the joints are, (64, 64) bool."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.0
    y = y + rng.uniform(0, height)
    row = np.floor(y / height)
    x = x + rng.uniform(0, width) + (row % 2) * width / 2 * shifted
    tone = np.sin(row * 12.9 + np.floor(x / width) * 78.2 + rng.uniform(0, 6.28))
    joints = (y % height < joint) | (x % width < joint)
    return tone, joints


def _smooth_noise(rng: np.random.Generator, cell: int) -> Array:
    """Normal noise at every `cell` pixels, interpolated to (64, 64)."""
    from PIL import Image

    coarse = rng.standard_normal((SIDE // cell, SIDE // cell)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float64)
