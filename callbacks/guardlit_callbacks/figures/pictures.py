"""Image grids with captions, and film strips of them; numpy in, numpy out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

_GAP, _FONT_SIZE, _LINES = 8, 14, 3
_WHITE, _BLACK, _GRAY = (255, 255, 255), (0, 0, 0), (90, 90, 90)


def captioned_grid(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str], scores: Sequence[str], columns: int, size: int
) -> NDArray[np.uint8]:
    """One image of all images, row by row, each with its score and caption under it.

    Args:
        images: (H, W, 3) uint8 each.
        captions: a text per image, wrapped to three lines.
        scores: a short text per image, on its own line; may be empty.
        columns: images in a row.
        size: the longer side of an image in the grid, in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    from PIL import Image, ImageDraw

    tiles = [fit(image, size) for image in images]
    columns = min(columns, len(tiles))
    line = _FONT_SIZE + 4
    cell_width, cell_height = size + _GAP, max(t.height for t in tiles) + (_LINES + 1) * line + _GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _WHITE)
    canvas = ImageDraw.Draw(sheet)
    for index, (tile, caption, score) in enumerate(zip(tiles, captions, scores, strict=True)):
        x, y = _GAP + index % columns * cell_width, _GAP + index // columns * cell_height
        sheet.paste(tile, (x, y))
        y += tile.height + 3
        if score:
            canvas.text((x, y), score, fill=_BLACK, font=_font())
            y += line
        for text in wrap(caption, size):
            canvas.text((x, y), text, fill=_GRAY, font=_font())
            y += line
    return np.asarray(sheet)


class Frame(NamedTuple):
    """A row of a film strip.

    Attributes:
        label: the moment, as in "step 40"; may have several lines.
        images: (H, W, 3) uint8 each.
        scores: a short text per image; may be empty.
    """

    label: str
    images: Sequence[NDArray[np.uint8]]
    scores: Sequence[str]


def film_strip(frames: Sequence[Frame], captions: Sequence[str], size: int) -> NDArray[np.uint8]:
    """One row of images per frame, its label at the left and each image's score under it.

    Args:
        frames: in the order of time.
        captions: a text per column, over it, wrapped to three lines.
        size: the longer side of an image in the strip, in pixels.

    Returns:
        (height, width, 3) uint8.
    """
    from PIL import Image, ImageDraw

    line = _FONT_SIZE + 4
    margin = _GAP + int(max(_font().getlength(text) for frame in frames for text in frame.label.split("\n"))) + _GAP
    head = _GAP + line * max((len(wrap(caption, size)) for caption in captions), default=0)
    height = size + _GAP + (line if any(any(frame.scores) for frame in frames) else 0)
    width = margin + max(len(frame.images) for frame in frames) * (size + _GAP)
    strip = Image.new("RGB", (width, head + len(frames) * height + _GAP), _WHITE)
    canvas = ImageDraw.Draw(strip)
    for column, caption in enumerate(captions):
        for row, text in enumerate(wrap(caption, size)):
            canvas.text((margin + column * (size + _GAP), _GAP // 2 + row * line), text, fill=_GRAY, font=_font())
    for row, frame in enumerate(frames):
        y = head + row * height
        label = frame.label.split("\n")
        for number, text in enumerate(label):
            top = y + (size - _FONT_SIZE) // 2 + round((number - (len(label) - 1) / 2) * line)
            canvas.text((_GAP, top), text, fill=_BLACK, font=_font())
        for column, (image, score) in enumerate(zip(frame.images, frame.scores, strict=True)):
            x = margin + column * (size + _GAP)
            strip.paste(fit(image, size), (x, y))
            canvas.text((x, y + size + 1), score, fill=_BLACK, font=_font())
    return np.asarray(strip)


def fit(image: NDArray[np.uint8], size: int) -> Image.Image:
    """Resizes the longer side to `size` pixels; small images are enlarged without smoothing."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = size / max(picture.size)
    target = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(target, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def wrap(text: str, width: int) -> list[str]:
    """Wraps the text to at most three lines of `width` pixels; cut text ends in an ellipsis."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or _font().getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > _LINES
    return [_shorten(line, width, cut and index == _LINES - 1) for index, line in enumerate(lines[:_LINES])]


def _shorten(line: str, width: int, cut: bool) -> str:
    if not cut and _font().getlength(line) <= width:
        return line
    while line and _font().getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=_FONT_SIZE)
