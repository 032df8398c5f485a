"""Base of the scorers on a CLIP model in transformers' format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.rewards.clip.preprocess import ClipPreprocess
from guardlit.rewards.files import check_report, expanded, file_errors, folder_sha256
from guardlit.rewards.network import NetworkScorer, Placement
from guardlit.types import RewardRequest

_BUFFERS = frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"})  # in old files


class ClipScorer(NetworkScorer):
    """Embeds prompts and images with both towers of a CLIP model; the images' embeddings are its features.

    Args:
        model: Hugging Face id or local folder of the CLIP model.
        processor: id or folder of tokenizer and image processor; the model's own if left out.
        placement: device, precision and batch size of the two towers; the cosine is always float32.
    """

    embeds_images = True

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        processor: str | None = None,
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(placement)
        self.model = expanded(model)
        self.processor = expanded(processor or model)

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load both towers, tokenizer and image processor; the files must hold exactly these weights."""
        from transformers import CLIPImageProcessor, CLIPTokenizer

        with file_errors(self.model, "CLIP folder"):
            clip = load_clip(self.model)
            digest = folder_sha256(self.model)
        with file_errors(self.processor, "CLIP folder"):
            self._preprocess = ClipPreprocess.like(CLIPImageProcessor.from_pretrained(self.processor))
            self._tokenizer = CLIPTokenizer.from_pretrained(self.processor)
        # transformers creates an empty vocabulary where the files are missing, and appends special tokens that it does
        # not find: in both cases the text tower would silently get wrong ids.
        known, expected = len(self._tokenizer), clip.config.text_config.vocab_size
        if known != expected:
            raise GuardlitError(
                f"{self.processor}: its tokenizer knows {known} tokens, the text encoder of {self.model} {expected}; "
                f"point `processor` to the folder with this model's vocab.json, merges.txt and tokenizer_config.json"
            )
        return clip, {"model": self.model, "weights_sha256": digest, "processor": self.processor}

    def weight_bytes(self) -> int | None:
        """Of both towers, by the model's config.json; None where it is not on this machine."""
        from transformers import CLIPConfig, CLIPModel

        if self.placement.device not in ("same", "cuda"):
            return 0
        try:
            config = CLIPConfig.from_pretrained(self.model, local_files_only=True)
        except OSError:
            return None
        with torch.device("meta"):
            clip = CLIPModel(config)
        weights = sum(p.numel() for p in clip.parameters())
        return int(weights * DTYPES[self.placement.dtype].itemsize)

    @property
    def clip(self) -> Any:
        """The CLIP model, on the device of the current request."""
        return self.network

    def compared(self, request: RewardRequest) -> tuple[Tensor, Tensor]:
        """Cosine of each image and its prompt, (B,), and the images' embeddings, (B, F); float32."""
        texts = self.once_each(request.prompts, self._embed_texts)
        images = self.in_batches(request.images, self._embed_images)
        return torch.nn.functional.cosine_similarity(texts, images), images

    def _embed_texts(self, texts: list[str]) -> Tensor:
        length = self.clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        embedding: Tensor = self.clip.get_text_features(**tokens.to(self.device)).pooler_output
        return embedding

    def _embed_images(self, images: Tensor) -> Tensor:
        pixels = self._preprocess(images.to(self.device)).to(self.clip.dtype)
        embedding: Tensor = self.clip.get_image_features(pixel_values=pixels).pooler_output
        return embedding


def load_clip(name: str) -> Any:
    """A `transformers.CLIPModel` in float32 from a folder or hub id, with exactly its weights.

    Raises:
        GuardlitError: another kind of model, or weights that are missing, unexpected or of another shape.
    """
    from transformers import CLIPModel, PretrainedConfig

    kind = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    if kind != "clip":
        found = f"its config.json says model_type {kind!r}" if kind else "it has no config.json with a model_type"
        raise GuardlitError(f"{name}: not a CLIP model, {found}; model_type 'clip' is needed here")
    # without dtype the file's decides, and a half-precision file would round before we choose
    model, report = CLIPModel.from_pretrained(
        name, dtype=torch.float32, weights_only=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    check_report(name, report, _BUFFERS)
    return model
