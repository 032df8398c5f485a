"""Images as files in memory."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def image_file(pixels: np.ndarray, format: str, size: int | None = None, **options: Any) -> bytes:
    """The content of an image file.

    Args:
        pixels: (height, width, 3) uint8 RGB.
        format: PNG or JPEG.
        size: edge of a square to which the image is resized first, bicubic; null keeps its size.
        options: of `PIL.Image.Image.save`.
    """
    from PIL import Image

    image = Image.fromarray(pixels)
    if size is not None and image.size != (size, size):
        image = image.resize((size, size))  # PIL's default is bicubic
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()
