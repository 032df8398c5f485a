"""Pairs of an image and its prompt, from a folder of images with a file that names them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guardlit.data.text_files import first_line, jsonl_rows
from guardlit.data.texts import checked
from guardlit.errors import GuardlitError
from guardlit.files import sha256

METADATA = "metadata.jsonl"
"""The file of an image folder that names its images: Hugging Face's format `imagefolder`."""
FORMAT = '{"file_name": "a.png", "text": "a cat"}'


@dataclass(frozen=True)
class ImagePairs:
    """Images with their prompts; the images stay on disk.

    Attributes:
        files: P images.
        texts: their P prompts.
        digests: SHA-256 of each image's file, P.
        size: height and width that images are brought to, in pixels.
    """

    files: Sequence[Path]
    texts: Sequence[str]
    digests: Sequence[str]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def digest(self) -> str:
        """Of images, prompts and size: pairs of equal digests train alike."""
        content = "\n".join(f"{image} {text}" for image, text in zip(self.digests, self.texts, strict=True))
        return hashlib.sha256(f"{self.size}\n{content}".encode()).hexdigest()[:16]

    def pixels(self, index: int) -> Tensor:
        """An image, (3, height, width) uint8: cropped at its center to the shape of `size`, and resized to it.

        Raises:
            GuardlitError: the file cannot be decoded.
        """
        from PIL import Image, ImageOps

        height, width = self.size
        try:
            with Image.open(self.files[index]) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _unreadable(str(self.files[index]), error) from error
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def load_pairs(source: str, size: tuple[int, int]) -> ImagePairs:
    """Read and check pairs in the order of their file; every image's header and content are read.

    Args:
        source: a folder with `metadata.jsonl` (Hugging Face's `imagefolder`, and what `guardlit sample` writes), or a
            .jsonl file. Each line is an object with the keys "file_name", below the file's folder, and "text".
        size: height and width of the run's images in pixels.

    Raises:
        GuardlitError: nothing there, a line without image or text, an image that cannot be read or is too small.
    """
    pairs = list(_pairs(_metadata_of(Path(os.path.expanduser(source))), size))
    if not pairs:
        raise GuardlitError(f"{source}: it is empty; at least one image with its prompt is needed: {FORMAT}")
    files, texts, digests = zip(*pairs, strict=True)
    return ImagePairs(files, texts, digests, size)


def _metadata_of(source: Path) -> Path:
    if source.is_dir():
        if not (source / METADATA).is_file():
            raise GuardlitError(
                f"{source} has no {METADATA}, which names the images with their prompts, one line each: {FORMAT}; "
                "`guardlit sample` writes it"
            )
        return source / METADATA
    if not source.is_file() or source.suffix.lower() != ".jsonl":
        what = "it is no .jsonl file" if source.is_file() else "there is no such folder or file"
        raise GuardlitError(f"{source}: {what}; name a folder of images with {METADATA}, or such a .jsonl file")
    return source


def _pairs(path: Path, size: tuple[int, int]) -> Iterator[tuple[Path, str, str]]:
    for place, text, row in jsonl_rows(path, "text"):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            found = f"'file_name' is {name!r}" if "file_name" in row else "no 'file_name' here"
            raise GuardlitError(f"{place}: {found}; each line names an image and its prompt: {FORMAT}")
        file = path.parent / name
        _check_image(place, file, size)
        yield file, checked(place, text), sha256(file)


def _check_image(place: str, file: Path, size: tuple[int, int]) -> None:
    """Refuse an image that is missing, of no known format, or smaller than `size`: it would have to be enlarged."""
    from PIL import Image

    if not file.is_file():
        raise GuardlitError(f"{place}: there is no image {file}; file_name is relative to the folder of this file")
    try:
        with Image.open(file) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(f"{place}: {file}", error) from error
    if height < size[0] or width < size[1]:
        raise GuardlitError(
            f"{place}: {file} is {width} x {height} pixels, smaller than the run's {size[1]} x {size[0]}; images are "
            "not enlarged: remove the line, or lower the policy's resolution"
        )


def _unreadable(place: str, error: Exception) -> GuardlitError:
    return GuardlitError(f"{place} cannot be read as an image ({first_line(error)}); remove its line or the file")
