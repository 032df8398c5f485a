"""The LAION aesthetic predictor: linear layers on CLIP's embedding, trained on people's ratings from 1 to 10."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from guardlit.files import sha256
from guardlit.rewards.clip.scorer import ClipScorer
from guardlit.rewards.files import expanded, fill, find_file, read_tensors, without_weights
from guardlit.rewards.network import Placement
from guardlit.types import RewardRequest, RewardResult


def score_head(width: int) -> nn.Sequential:
    """The head of this predictor and of ImageReward: width - 1024 - 128 - 64 - 16 - 1, without activations.

    The numbers missing in its keys are dropout layers, which do nothing outside training.
    """
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = [nn.Linear(old, new) for old, new in pairwise(sizes)]
    return nn.Sequential(OrderedDict(zip(("0", "2", "4", "6", "7"), layers, strict=True)))


class Aesthetic(ClipScorer):
    """Expected rating of an image, independent of its prompt: about 1 to 10, mostly 4 to 7 for generated images.

    Args:
        weights: the head's file, `sac+logos+ava1-l14-linearMSE.pth` of github.com/christophschuhmann/
            improved-aesthetic-predictor, or the folder or hub id that holds it.
        model: Hugging Face id or local folder of the CLIP model whose embeddings the head was trained on.
        placement: device, precision and batch size of the network.
    """

    def __init__(
        self,
        weights: str,
        model: str = "openai/clip-vit-large-patch14",
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model, placement=placement)
        self.weights_file = expanded(weights)

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load the vision tower, its image processor and the head; files must hold exactly these weights."""
        clip: Any
        clip, files = super().load()
        path = find_file(self.weights_file, "sac+logos+ava1-l14-linearMSE.pth", "aesthetic predictor's file")
        with without_weights():
            head = score_head(clip.config.projection_dim)
        fill(nn.ModuleDict({"layers": head}), read_tensors(path), path)
        del clip.text_model, clip.text_projection  # prompts are not used
        files = {**files, "head": path.name, "head_sha256": sha256(path)}
        return nn.ModuleDict({"clip": clip, "head": head}), files

    @property
    def clip(self) -> Any:
        """The CLIP model, on the device of the current request."""
        return self.network["clip"]  # type: ignore[index]

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B images, (B,)."""
        head: Any = self.network["head"]  # type: ignore[index]
        seen = torch.nn.functional.normalize(self.in_batches(request.images, self._embed_images))
        return self.result(self.in_batches(seen, lambda rows: head(rows.to(self.clip.dtype))[:, 0]), features=seen)
