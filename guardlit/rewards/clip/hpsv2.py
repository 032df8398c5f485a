"""HPS v2 and v2.1 (arXiv:2306.09341): CLIP ViT-H/14 trained on human preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rewards.clip.preprocess import OPENAI_MEAN, OPENAI_STD, normalize
from guardlit.rewards.files import expanded, fill, find_file, read_tensors, without_weights
from guardlit.rewards.network import NetworkScorer, Placement
from guardlit.types import RewardRequest, RewardResult

_FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(NetworkScorer):
    """cos(text, image), raw: about 0.2 to 0.35 for the published weights; some tables print 100 times that.

    The two versions differ only in their file.

    Args:
        version: v2.1 or v2.0.
        weights: the official file, or a folder or hub id that holds it; `.safetensors` works too.
        antialias: resize as the `hpsv2` package does with torchvision 0.17 or later; false as with older versions.
        architecture: name of an open_clip configuration.
        placement: device, precision and batch size of the two towers; the cosine is always float32.
    """

    embeds_images = True

    def __init__(
        self,
        version: Literal["v2.1", "v2.0"] = "v2.1",
        weights: str = "xswu/HPSv2",
        antialias: bool = True,
        architecture: str = "ViT-H-14",
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(placement)
        self.version, self.weights_file, self.antialias = version, expanded(weights), antialias
        self.architecture = architecture

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, version, file, preprocessing, precision."""
        return {**super().provenance, "version": self.version, "antialias": str(self.antialias).lower()}

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load both towers; the file must hold exactly these weights."""
        import open_clip

        if (config := open_clip.get_model_config(self.architecture)) is None:
            raise GuardlitError(f"architecture '{self.architecture}' of HPSv2 is unknown to open_clip; ViT-H-14 is HPS")
        path = find_file(self.weights_file, _FILES[self.version], "HPSv2 file")
        other = {file: version for version, file in _FILES.items()}.get(path.name, self.version)
        if other != self.version:
            raise GuardlitError(f"{path}: the file of HPS {other}, but `version` of HPSv2 says {self.version}")
        content = read_tensors(path)
        with without_weights():
            clip = open_clip.CLIP(**config)
        fill(clip, content.get("state_dict", content), path)
        self._tokenizer = open_clip.get_tokenizer(self.architecture)
        return clip, {"weights": path.name, "weights_sha256": sha256(path), "architecture": self.architecture}

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        texts = self.once_each(request.prompts, self._embed_texts)
        images = self.in_batches(request.images, self._embed_images)
        return self.result(torch.nn.functional.cosine_similarity(texts, images), features=images)

    def _embed_texts(self, texts: list[str]) -> Tensor:
        clip: Any = self.network
        embedding: Tensor = clip.encode_text(self._tokenizer(texts).to(self.device))
        return embedding

    def _embed_images(self, images: Tensor) -> Tensor:
        clip: Any = self.network
        pixels = fit_longest_edge(images.to(self.device).float() / 255, clip.visual.image_size[0], self.antialias)
        seen = normalize(pixels, OPENAI_MEAN, OPENAI_STD)  # after padding, so that the margin is black, not gray
        embedding: Tensor = clip.encode_image(seen.to(DTYPES[self.placement.dtype]))
        return embedding


def fit_longest_edge(pixels: Tensor, size: int, antialias: bool = True) -> Tensor:
    """Bicubic resize of the longer edge, then black margins to a square, as the `hpsv2` package does.

    Pixels are floating-point, so values may leave [0, 1] and are not rounded to gray levels.

    Args:
        pixels: (B, 3, height, width) in [0, 1].
        size: of both edges of the square.
        antialias: average over the pixels that are merged.

    Returns:
        (B, 3, size, size).
    """
    scale = size / max(pixels.shape[-2:])
    height, width = (round(edge * scale) for edge in pixels.shape[-2:])
    pixels = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=antialias)
    top, left = (size - height) // 2, (size - width) // 2
    return torch.nn.functional.pad(pixels, (left, size - width - left, top, size - height - top))
