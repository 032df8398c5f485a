"""The images that a validation step returns, checked: the same rule for every callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from guardlit_callbacks.tools.lightning import MisconfigurationException
from guardlit_callbacks.tools.outputs import read_output

RANGES = ((0.0, 1.0), (-1.0, 1.0))
ROUNDING = 1e-3
"""How far rounding in half precision may carry a value out of its range."""

Range = tuple[float, float]


def check_range(value_range: Sequence[float], callback: object) -> Range:
    """The range of float images, [0, 1] or [-1, 1].

    Raises:
        ValueError: another range.
    """
    if tuple(value_range) not in RANGES:
        raise ValueError(f"{type(callback).__name__}: value_range must be [0, 1] or [-1, 1], got {list(value_range)}")
    return float(value_range[0]), float(value_range[1])


def read_images(outputs: Any, key: str, callback: object, value_range: Range) -> Tensor:
    """The images under `key`, (B, 3, height, width) uint8 on their device.

    Args:
        outputs: what the step returned.
        key: of the images, which are uint8, or floats in `value_range`.
        callback: that reads them; named in errors.
        value_range: of floats.

    Raises:
        MisconfigurationException: the key is missing; the images have another shape, dtype or range.
    """
    images = read_output(outputs, key, callback, "images")
    name = type(callback).__name__
    what = f"{name}: the output {key!r} is {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
    low, high = value_range
    rule = f"images must be (B, 3, height, width), uint8 or floats in [{low:g}, {high:g}]"
    if images.ndim != 4 or images.shape[1] != 3:
        raise MisconfigurationException(f"{what}; {rule}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise MisconfigurationException(f"{what}; {rule}")
    if not images.numel():
        return images.to(torch.uint8)
    smallest, largest = (float(value) for value in images.float().aminmax())
    if not (smallest >= low - ROUNDING and largest <= high + ROUNDING):  # NaN fails, too
        raise MisconfigurationException(
            f"{what} with values from {smallest:.4g} to {largest:.4g}; {rule}: {_remedy(name, smallest, largest, low)}"
        )
    return ((images.float() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)


def _remedy(name: str, smallest: float, largest: float, low: float) -> str:
    if low == 0 and smallest >= -1 - ROUNDING and largest <= 1 + ROUNDING:
        return f"set {name}(value_range=(-1, 1)), or clamp them"
    return "convert or clamp them in the step"
