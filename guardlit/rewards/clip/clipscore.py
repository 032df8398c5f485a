"""CLIPScore (arXiv:2104.08718): how well an image fits its prompt, by a CLIP model."""

from __future__ import annotations

from guardlit.rewards.clip.scorer import ClipScorer
from guardlit.types import RewardRequest, RewardResult


class CLIPScore(ClipScorer):
    """100 x max(cos(text, image), 0), in [0, 100]: torchmetrics' scale; the paper's is 2.5 instead of 100.

    OpenAI's ViT-L/14, the default `model`, and its ViT-B/32 are both in use; their scores cannot be compared.
    """

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        cosines, images = self.compared(request)
        return self.result(100 * cosines.clamp(min=0), features=images)
