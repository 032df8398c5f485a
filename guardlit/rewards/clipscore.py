"""CLIPScore (arXiv:2104.08718): how well a CLIP model finds that a picture fits its prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from guardlit.rewards.clip import ClipScorer, load_clip
from guardlit.rewards.network import Placement
from guardlit.rewards.weights import expanded, one_line
from guardlit.types import RewardRequest, RewardResult


class CLIPScore(ClipScorer):
    """100 x max(cos(text, image), 0), in [0, 100]: torchmetrics' scale; the paper's is 2.5 instead of 100.

    Args:
        model: Hugging Face id or local folder of the CLIP model; the published ViT-L/14 and ViT-B/32 of OpenAI both
            are in use, and their scores do not compare.
        processor: id or folder of tokenizer and image processor; the model's own if left out.
        placement: where the two towers live and how they are fed; the cosine is always taken in float32.
    """

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(model, processor, placement)

    def judge(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        return self.result(100 * self.cosines(request).clamp(min=0))


class TorchmetricsClip:
    """Makes `torchmetrics.multimodal.CLIPScore` work with transformers 5, and with a local folder.

    Give it as `model_name_or_path`. By a name alone that metric fails: the towers return an output object where it
    expects a tensor; and it takes no folder.

    Args:
        model: Hugging Face id or local folder of the CLIP model.
    """

    def __init__(self, model: str = "openai/clip-vit-large-patch14") -> None:
        self.model = expanded(model)

    def __call__(self) -> tuple[nn.Module, Any]:
        """The model and the processor that torchmetrics asks for; PIL's resize, which is the reference."""
        from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

        with one_line(self.model, "CLIP folder"):
            images = CLIPImageProcessorPil.from_pretrained(self.model)
            texts = CLIPTokenizer.from_pretrained(self.model)
            return _TensorsOut(load_clip(self.model)), CLIPProcessor(images, texts)


class _TensorsOut(nn.Module):
    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.config = clip, clip.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.clip.get_image_features(pixel_values=pixels).pooler_output
        return embedding

    def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embedding: Tensor = self.clip.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
        return embedding
