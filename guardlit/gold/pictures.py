"""Images as PNG files whose names hold their SHA-256, so that a corrupt one is detected."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.files import atomic_write, sha256
from guardlit.types import Prompt

_NAME = re.compile(r"(\d{5,})_([0-9a-f]{16})\.png")


@dataclass(frozen=True)
class Picture:
    """One image on disk.

    Attributes:
        path: of the PNG file.
        sha256: of the file.
        index: of the image in its set, and of its noise.
        prompt: that it was drawn for.
    """

    path: Path
    sha256: str
    index: int
    prompt: Prompt

    def read(self) -> Tensor:
        """Its pixels, (3, height, width) uint8."""
        from PIL import Image

        with Image.open(self.path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class PictureFolder:
    """The images of one model on one set of prompts.

    Args:
        path: of the folder; created with the first image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self) -> dict[int, tuple[Path, str]]:
        """Files and their SHA-256 by index; corrupt files are removed, with a message."""
        found = {}
        for path in sorted(self.path.glob("*.png")):
            if (match := _NAME.fullmatch(path.name)) is None:
                continue
            digest = _sha256(path)
            if digest.startswith(match[2]):
                found[int(match[1])] = (path, digest)
            else:
                print(f"{path} is corrupt", file=sys.stderr)
                path.unlink(missing_ok=True)
        return found

    def write(self, index: int, image: Tensor) -> None:
        """Write one image, (3, height, width) uint8, atomically; raises `GuardlitError` if it cannot be written."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(file, format="PNG")
        data = file.getvalue()
        path = self.path / f"{index:05d}_{hashlib.sha256(data).hexdigest()[:16]}.png"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, sync=False) as out:  # a corrupt one is found by its name, and drawn again
                out.write(data)
        except OSError as error:
            raise GuardlitError(f"image {path} cannot be written: {error.strerror or error}") from error


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError:  # missing or unreadable: treated as corrupt
        return ""
