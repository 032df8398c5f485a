"""PickScore (arXiv:2305.01569): CLIP ViT-H/14 trained on human choices between two images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from guardlit.rewards.clip.scorer import ClipScorer
from guardlit.rewards.files import expanded
from guardlit.rewards.network import Placement
from guardlit.types import RewardRequest, RewardResult

_PUBLISHED_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore(ClipScorer):
    """exp(logit_scale) x cos(text, image), raw: about 100 x cosine, 18 to 24 for the published weights.

    Args:
        model: Hugging Face id or local folder of the CLIP model.
        processor: id or folder of tokenizer and image processor. By default the model's folder if it holds
            `preprocessor_config.json`, otherwise laion's CLIP ViT-H/14, as published with PickScore.
        placement: device, precision and batch size of the two towers; the cosine is always float32.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        own = (Path(expanded(model)) / "preprocessor_config.json").is_file()
        super().__init__(model, processor or (model if own else _PUBLISHED_PROCESSOR), placement)

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load both towers, tokenizer and image processor; the files must hold exactly these weights."""
        clip: Any
        clip, files = super().load()
        self._scale = clip.logit_scale.exp().item()  # before a lower precision rounds it
        return clip, files

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        cosines, images = self.compared(request)
        return self.result(self._scale * cosines, features=images)
