"""PickScore (arXiv:2305.01569): CLIP ViT-H/14 trained on human choices between two images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.rewards.clip_preprocess import ClipPreprocess
from guardlit.rewards.network import NetworkScorer, Placement
from guardlit.rewards.weights import check_report, expanded, folder_sha256, one_line
from guardlit.types import RewardRequest, RewardResult

_PUBLISHED_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_BUFFERS = frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"})  # in old files


class PickScore(NetworkScorer):
    """exp(logit_scale) x cos(text, image), raw: about 100 x cosine, 18 to 24 for the published weights.

    Args:
        model: Hugging Face id or local folder of the CLIP model.
        processor: id or folder of tokenizer and image processor. By default the model's folder if it holds
            `preprocessor_config.json`, otherwise laion's CLIP ViT-H/14, as published with PickScore.
        placement: where the two towers live and how they are fed; the cosine is always taken in float32.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(placement)
        self.model = expanded(model)
        own = (Path(self.model) / "preprocessor_config.json").is_file()
        self.processor = processor or (self.model if own else _PUBLISHED_PROCESSOR)

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Read both towers, tokenizer and image processor; every weight must be in its place."""
        from transformers import CLIPImageProcessor, CLIPTokenizer

        with one_line(self.model, "CLIP folder"):
            clip = _load_clip(self.model)
            digest = folder_sha256(self.model)
        with one_line(self.processor, "CLIP folder"):
            self._preprocess = ClipPreprocess.like(CLIPImageProcessor.from_pretrained(self.processor))
            self._tokenizer = CLIPTokenizer.from_pretrained(self.processor)
        # transformers makes up an empty vocabulary where the files are missing, and appends special tokens it does
        # not find: in both cases the text tower would be fed wrong ids without a word.
        known, expected = len(self._tokenizer), clip.config.text_config.vocab_size
        if known != expected:
            raise GuardlitError(
                f"{self.processor}: its tokenizer knows {known} tokens, the text encoder of {self.model} {expected}; "
                f"point `processor` to the folder with this model's vocab.json, merges.txt and tokenizer_config.json"
            )
        self._scale = clip.logit_scale.exp().item()  # before a lower precision rounds it
        return clip, {"model": self.model, "weights_sha256": digest, "processor": self.processor}

    def judge(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        texts = self.once_each(request.prompts, self._embed_texts)
        images = self.in_batches(request.images, self._embed_images)
        return self.result(self._scale * torch.nn.functional.cosine_similarity(texts, images))

    def _embed_texts(self, texts: list[str]) -> Tensor:
        clip: Any = self.network
        length = clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        embedding: Tensor = clip.get_text_features(**tokens.to(self.device)).pooler_output
        return embedding

    def _embed_images(self, images: Tensor) -> Tensor:
        clip: Any = self.network
        pixels = self._preprocess(images.to(self.device)).to(clip.dtype)
        embedding: Tensor = clip.get_image_features(pixel_values=pixels).pooler_output
        return embedding


def _load_clip(name: str) -> Any:
    from transformers import CLIPModel, PretrainedConfig

    kind = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    if kind != "clip":
        found = f"its config.json says model_type {kind!r}" if kind else "it has no config.json with a model_type"
        raise GuardlitError(f"{name}: not a CLIP model, {found}; PickScore needs model_type 'clip'")
    # dtype must be given: without it the file's decides, and a half-precision file would round before we choose
    model, report = CLIPModel.from_pretrained(
        name, dtype=torch.float32, weights_only=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    check_report(name, report, _BUFFERS)
    return model
