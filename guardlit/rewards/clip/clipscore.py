"""CLIPScore (arXiv:2104.08718): how well an image fits its prompt, by a CLIP model."""

from __future__ import annotations

from guardlit.rewards.clip.scorer import ClipScorer
from guardlit.rewards.network import Placement
from guardlit.types import RewardRequest, RewardResult


class CLIPScore(ClipScorer):
    """100 x max(cos(text, image), 0), in [0, 100]: torchmetrics' scale; the paper's is 2.5 instead of 100.

    Args:
        model: Hugging Face id or local folder of the CLIP model. OpenAI's ViT-L/14 and ViT-B/32 are both in use; their
            scores cannot be compared.
        processor: id or folder of tokenizer and image processor; the model's own if left out.
        placement: device, precision and batch size of the two towers; the cosine is always float32.
    """

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model, processor, placement)

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        return self.result(100 * self.cosines(request).clamp(min=0))
