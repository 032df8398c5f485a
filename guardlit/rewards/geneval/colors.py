"""GenEval's colors: CLIP classifies an object whose surroundings are painted over."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from guardlit.rewards.clip.preprocess import ClipPreprocess, normalize
from guardlit.rewards.geneval.prompt import COLORS

_TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
_SURROUNDINGS = "#999"


def sentences(name: str) -> list[str]:
    """CLIP's prompts for a class: three sentences a color, color by color."""
    return [template.format(color=color, name=name) for color in COLORS for template in _TEMPLATES]


def color_vectors(embedded: Tensor) -> Tensor:
    """One direction a color from the embeddings of `sentences`, (10 x 3, D) -> (10, D) of length 1."""
    means = F.normalize(embedded.float(), dim=-1).reshape(len(COLORS), len(_TEMPLATES), -1).mean(dim=1)
    return F.normalize(means, dim=-1)


def crops(image: Tensor, boxes: Tensor, masks: Tensor, preprocess: ClipPreprocess) -> Tensor:
    """CLIP's input for each object, (K, 3, *preprocess.crop) float32 on the CPU.

    PIL and torchvision make it, as in the benchmark: a crop is seldom square, and the odd pixel of its margin falls on
    the other side than with the preprocessing of transformers.

    Args:
        image: (3, height, width) uint8.
        boxes: (K, 4) int64.
        masks: (K, height, width) bool.
        preprocess: the sizes and the normalization.
    """
    from PIL import Image
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    blank = Image.new("RGB", picture.size, _SURROUNDINGS)
    seen = []
    for box, mask in zip(boxes.tolist(), masks.cpu().numpy(), strict=True):
        crop = Image.composite(picture, blank, Image.fromarray(mask)).crop(box)
        crop = center_crop(resize(crop, [preprocess.size], Image.Resampling.BICUBIC), list(preprocess.crop))
        seen.append(pil_to_tensor(crop) / 255)
    return normalize(torch.stack(seen), preprocess.mean, preprocess.std)


def nearest(embedded: Tensor, vectors: Tensor) -> list[str]:
    """The color of each crop.

    Args:
        embedded: CLIP's embeddings of the crops, (K, D).
        vectors: of the colors, (10, D).

    Raises:
        FloatingPointError: embeddings that are not finite.
    """
    cosines = F.normalize(embedded.float(), dim=-1) @ vectors.T
    if not torch.isfinite(cosines).all():
        raise FloatingPointError("CLIP's embeddings are not finite")
    return [COLORS[index] for index in cosines.argmax(dim=-1).tolist()]
