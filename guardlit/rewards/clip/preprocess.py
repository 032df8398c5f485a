"""CLIP's image preprocessing on tensors: the same pixels as PIL, on CPU or GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Per channel, of the images that CLIP was trained on."""
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of the same images."""

_BICUBIC = 3  # PIL's number
_FIXED_POINT = 2**22  # PIL's weights for 8-bit images are integer multiples of 1 / 2^22


def resize_shortest_edge(images: Tensor, size: int) -> Tensor:
    """Bicubic, antialiased resize: bit for bit what PIL does with 8-bit images.

    Like PIL: width first, then height, weights in fixed point, gray levels rounded to integers after each pass. Sums of
    integers are exact in float64, so a GPU gives the CPU's pixels. (`F.interpolate` in float32 differs by a
    level wherever a sum falls between two levels, and without antialiasing by up to 164.)

    Args:
        images: (B, 3, height, width) uint8, on a device with float64.
        size: pixels of the shorter edge; the longer one keeps the aspect ratio, rounded down.

    Returns:
        (B, 3, new height, new width) float32, integers in [0, 255].
    """
    height, width = images.shape[-2:]
    shorter = min(height, width)
    across = _bicubic_weights(width, size * width // shorter).to(images.device)
    down = _bicubic_weights(height, size * height // shorter).to(images.device)
    pixels = _to_levels(images.double() @ across.T)
    return _to_levels(down @ pixels).float()


def _bicubic_weights(old: int, new: int) -> Tensor:
    """Row i holds the weights of the old pixels in new pixel i, in fixed point: (new, old) float64."""
    positions = torch.arange(old, dtype=torch.float64) + 0.5
    centers = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)
    x = (positions - centers[:, None]).abs() / max(old / new, 1.0)  # a shrinking image needs a wider kernel
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    return (weights / weights.sum(dim=1, keepdim=True) * _FIXED_POINT).round()


def _to_levels(sums: Tensor) -> Tensor:
    return torch.floor(sums / _FIXED_POINT + 0.5).clamp(0, 255)


def normalize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixels - mean) / std per channel, for pixels (B, 3, height, width) in [0, 1]."""
    return (pixels - pixels.new_tensor(mean).view(-1, 1, 1)) / pixels.new_tensor(std).view(-1, 1, 1)


@dataclass(frozen=True)
class ClipPreprocess:
    """Resize the shorter edge, crop the center, normalize.

    Attributes:
        size: pixels of the shorter edge after the resize.
        crop: (height, width) of the crop; at most `size` each.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        margin: how half a pixel of margin rounds, where an odd number is cut off: down, as transformers does with PIL
            images, or to the even number, as torchvision does.
    """

    size: int
    crop: tuple[int, int]
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    margin: Literal["down", "even"] = "down"

    @classmethod
    def like(cls, processor: Any) -> ClipPreprocess:
        """The settings of a `transformers.CLIPImageProcessor`; `ValueError` if they ask for another procedure."""
        steps = (processor.do_resize, processor.do_center_crop, processor.do_rescale, processor.do_normalize)
        size, crop = processor.size["shortest_edge"], (processor.crop_size["height"], processor.crop_size["width"])
        if not all(steps) or processor.resample != _BICUBIC or not size or max(crop) > size:
            raise ValueError(
                "its preprocessor_config.json asks for something else than CLIP's preprocessing: bicubic resize of "
                "the shortest edge, a center crop no larger than that, rescale, normalize"
            )
        return cls(size, crop, tuple(processor.image_mean), tuple(processor.image_std))

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8 -> input of the vision tower, (B, 3, *crop) float32."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images are {images.dtype}; scores are defined on uint8, as a PNG file would hold them")
        pixels = resize_shortest_edge(images, self.size)
        to_whole = math.floor if self.margin == "down" else round
        top, left = (to_whole((have - want) / 2) for have, want in zip(pixels.shape[-2:], self.crop, strict=True))
        pixels = pixels[..., top : top + self.crop[0], left : left + self.crop[1]] / 255
        return normalize(pixels, self.mean, self.std)
