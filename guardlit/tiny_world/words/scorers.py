"""Training of the signs' gold scorers, and the defects that they must see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from guardlit.rewards.words.networks import BACKGROUNDS, COLORS, FEATURES, REAL, FeatureNet, SignNet, to_pixels
from guardlit.tiny_world.words.signs import FONTS, Array, Sign, draw_sign, draw_signs, random_sign, to_levels

Defect = Callable[[Sign, np.random.Generator], Array]


def train_classifier(count: int, steps: int, seed: int) -> SignNet:
    """Train color and background on `count` new signs, moved, faded and noisy."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    signs = [random_sign(rng) for _ in range(count)]
    pixels, labels = to_pixels(to_tensor(draw_signs(signs, rng))), labels_of(signs)
    net = SignNet()

    def loss(rows: Tensor) -> Tensor:
        color, background = net(_distort(pixels[rows]))
        return cross_entropy(color, labels[rows, 0]) + cross_entropy(background, labels[rows, 1])

    _fit(net, loss, count, steps)
    return net


def train_features(count: int, steps: int, seed: int) -> FeatureNet:
    """Train features that tell color, background, font and each of `DEFECTS`; half of `count` new signs have one."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    signs = [random_sign(rng) for _ in range(count)]
    kinds = rng.integers(-len(DEFECTS), len(DEFECTS), count)
    draws = [draw_sign, *DEFECTS.values()]
    pictures = np.stack([draws[max(kind + 1, 0)](sign, rng) for sign, kind in zip(signs, kinds, strict=True)])
    pixels, labels = to_pixels(to_tensor(pictures)), labels_of(signs)
    defects = nn.functional.one_hot(torch.from_numpy(kinds).clamp(min=-1) + 1, len(DEFECTS) + 1)[:, 1:].float()
    net = FeatureNet()
    sizes = (len(COLORS), len(BACKGROUNDS), len(FONTS), len(DEFECTS))
    heads = nn.Linear(FEATURES, sum(sizes))

    def loss(rows: Tensor) -> Tensor:
        *known, defect = heads(8 * net(pixels[rows])).split(sizes, dim=1)
        told = [cross_entropy(logits, labels[rows, i]) for i, logits in enumerate(known)]
        return torch.stack(told).sum() + 6 * binary_cross_entropy_with_logits(defect, defects[rows])

    _fit(nn.ModuleList([net, heads]), loss, count, steps)
    return net


@torch.no_grad()
def real_features(net: FeatureNet, seed: int) -> Tensor:
    """Features of new signs by color and background: (30, 48, 48) float16."""
    rng = np.random.default_rng(seed)
    found = []
    for color in COLORS:
        for background in BACKGROUNDS:
            signs = [replace(random_sign(rng), color=color, background=background) for _ in range(REAL)]
            found.append(net(to_pixels(to_tensor(draw_signs(signs, rng)))))
    return torch.stack(found).half()


def to_tensor(pictures: Array) -> Tensor:
    """Pictures (N, H, W, 3) to images (N, 3, H, W) uint8."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def labels_of(signs: list[Sign]) -> Tensor:
    """Numbers of color, background and font, (N, 3)."""
    return torch.tensor([[COLORS.index(s.color), BACKGROUNDS.index(s.background), FONTS.index(s.font)] for s in signs])


def _fit(net: nn.Module, loss_of: Callable[[Tensor], Tensor], count: int, steps: int) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        loss = loss_of(torch.randint(count, (64,)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.eval()


def _distort(pixels: Tensor) -> Tensor:
    """Move by up to 2 pixels, fade, brighten, and add noise to each pixel."""
    n = len(pixels)
    moved = torch.roll(pixels, tuple(torch.randint(-2, 3, (2,)).tolist()), dims=(2, 3))
    contrast, level = 0.7 + 0.4 * torch.rand(n, 1, 1, 1), 0.12 * torch.rand(n, 1, 1, 1)
    faded = moved.mean(dim=(2, 3), keepdim=True).lerp(moved, contrast)
    return (faded + level * torch.randn_like(moved)).clamp(0, 1)


def _flat(sign: Sign, rng: np.random.Generator) -> Array:
    """No texture in the background."""
    return draw_sign(sign, rng, textured=False)


def _other_font(sign: Sign, rng: np.random.Generator) -> Array:
    """A light or an oblique font."""
    return draw_sign(replace(sign, font=str(rng.choice(["DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif"]))), rng)


def _noisy(sign: Sign, rng: np.random.Generator) -> Array:
    """Normal noise of 15 to 40 levels."""
    picture = draw_sign(sign, rng)
    return to_levels(picture + rng.normal(0, rng.uniform(15, 40), picture.shape))


def _blurred(sign: Sign, rng: np.random.Generator) -> Array:
    """A half, a third or a quarter of the resolution."""
    from PIL import Image

    picture = Image.fromarray(draw_sign(sign, rng))
    side = picture.width // int(rng.integers(2, 5))
    return np.asarray(picture.resize((side, side)).resize(picture.size))


def _harsh(sign: Sign, rng: np.random.Generator) -> Array:
    """1.5 to 2.5 times the contrast."""
    picture = draw_sign(sign, rng).astype(np.float64)
    return to_levels(picture.mean() + rng.uniform(1.5, 2.5) * (picture - picture.mean()))


def _patched(sign: Sign, rng: np.random.Generator) -> Array:
    """A rectangle of another sign's picture."""
    picture, other = draw_sign(sign, rng), draw_sign(random_sign(rng), rng)
    top, left = rng.integers(0, 40, 2)
    height, width = rng.integers(16, 33, 2)
    picture[top : top + height, left : left + width] = other[top : top + height, left : left + width]
    return picture


DEFECTS: dict[str, Defect] = {
    "flat": _flat,
    "other_font": _other_font,
    "noisy": _noisy,
    "blurred": _blurred,
    "harsh": _harsh,
    "patched": _patched,
}
"""What draws a sign with each defect, (64, 64, 3) uint8."""
