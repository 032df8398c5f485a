"""The size of an image as a JPEG file: a reward without a model that improves visibly within a few rounds."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from guardlit.rewards.base import Scorer
from guardlit.rewards.images import image_file
from guardlit.types import RewardRequest, RewardResult

_QUALITY = 95


class JPEGCompressibility(Scorer):
    """Minus the kilobytes (1000 bytes) of the image as a JPEG file of quality 95, over 500 (DDPO, arXiv:2305.13301).

    Args:
        incompressible: reward large files instead: plus the kilobytes over 500.
    """

    name = "jpeg_compressibility"
    distinguishes = True

    def __init__(self, incompressible: bool = False) -> None:
        self.sign = 1 if incompressible else -1
        if incompressible:
            self.name = "jpeg_incompressibility"

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer and the file's quality."""
        return {"scorer": self.name, "quality": str(_QUALITY)}

    def weight_bytes(self) -> int:
        """There are no weights."""
        return 0

    def setup(self, device: torch.device) -> None:
        """Nothing to load."""

    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images of any size; prompts are not used."""
        pixels = request.images.permute(0, 2, 3, 1).cpu().numpy()
        kilobytes = torch.tensor([len(image_file(image, "JPEG", quality=_QUALITY)) / 1000 for image in pixels])
        return self.result(self.sign * kilobytes / 500)
