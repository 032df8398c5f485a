"""ImageReward (arXiv:2304.05977): BLIP encodes prompt and image, and a head scores the pair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rewards.clip.aesthetic import score_head
from guardlit.rewards.clip.preprocess import ClipPreprocess
from guardlit.rewards.files import expanded, file_errors, fill, find_file, read_tensors, without_weights
from guardlit.rewards.network import NetworkScorer, Placement
from guardlit.types import RewardRequest, RewardResult

_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of the head's output on the authors' validation set
_PROMPT_TOKENS = 35
_ADDED_TOKENS = 2  # [DEC] and [ENC] have embeddings, but scoring does not use them

# Heads and epsilons are the authors': the weights also load with transformers' defaults, but the scores are wrong.
_VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-6,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "is_decoder": True,  # creates cross-attention; the forward pass stays bidirectional
}

_NOT_USED = re.compile(r"blip\.(vision_proj|text_proj)\.(weight|bias)|blip\.text_encoder\.embeddings\.position_ids")
_RENAMED = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(.+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.norm\.(.+)", r"vision.post_layernorm.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision.encoder.layers.\1.self_attn.projection.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(fc[12])\.(.+)", r"vision.encoder.layers.\1.mlp.\2.\3"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
    (r"mlp\.layers\.(.+)", r"mlp.\1"),
)


class ImageReward(NetworkScorer):
    """Preference for an image given its prompt, standardized by the authors: about -2 to 2, 0 on average.

    Args:
        weights: the official file, or a folder or hub id that holds `ImageReward.pt`; `.safetensors` works too.
        tokenizer: Hugging Face id or local folder of BERT's tokenizer.
        vision: settings of `transformers.BlipVisionConfig` that differ from the published ones.
        text: settings of `transformers.BlipTextConfig` that differ from the published ones.
        placement: device, precision and batch size of the network.
    """

    embeds_images = True

    def __init__(
        self,
        weights: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(placement)
        self.weights_file, self.tokenizer = expanded(weights), expanded(tokenizer)
        self.vision, self.text = vision or {}, text or {}

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, files, differences from the published architecture, precision."""
        other = {key: repr(value) for key, value in (("vision", self.vision), ("text", self.text)) if value}
        return {**super().provenance, "tokenizer": self.tokenizer, **other}

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load the network and the tokenizer; the file must hold exactly these weights."""
        path = find_file(self.weights_file, "ImageReward.pt", "ImageReward file")
        network = self._build()
        tensors = {key: tensor for key, tensor in read_tensors(path).items() if not _NOT_USED.fullmatch(key)}
        fill(network, {_renamed(key): tensor for key, tensor in tensors.items()}, path)
        self._load_tokenizer(network["text"].config.vocab_size)
        return network, {"weights": path.name, "weights_sha256": sha256(path)}

    def _build(self) -> Any:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        vision = BlipVisionConfig(**{**_VISION, **self.vision})
        text = BlipTextConfig(**{**_TEXT, **self.text, "encoder_hidden_size": vision.hidden_size})
        self._preprocess = ClipPreprocess(vision.image_size, (vision.image_size,) * 2, margin="even")
        with without_weights():
            parts = {
                "vision": BlipVisionModel(vision),
                "text": BlipTextModel(text, add_pooling_layer=False),
                "mlp": score_head(text.hidden_size),
            }
        return nn.ModuleDict(parts)

    def _load_tokenizer(self, vocab_size: int) -> None:
        from transformers import BertTokenizer

        # transformers creates an empty vocabulary where the files are missing
        find_file(self.tokenizer, "tokenizer_config.json", "folder of BERT's tokenizer")
        with file_errors(self.tokenizer, "folder of BERT's tokenizer"):
            self._tokenizer = BertTokenizer.from_pretrained(self.tokenizer)
        known, expected = len(self._tokenizer), vocab_size - _ADDED_TOKENS
        if known != expected:
            raise GuardlitError(
                f"{self.tokenizer}: its tokenizer knows {known} tokens, ImageReward was trained with {expected}; "
                f"point `tokenizer` to the folder with bert-base-uncased's vocab.txt and tokenizer_config.json"
            )

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B matched pairs of image and prompt, (B,)."""
        batches = self.placement.batches(len(request))
        parts = [self._rate(request.images[batch], request.prompts[batch]) for batch in batches]
        raw, features = (torch.cat(column) for column in zip(*parts, strict=True))
        return self.result((raw - _MEAN) / _STD, features=features)

    def _rate(self, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """The head's output, (B,), and the class token of the images alone, (B, F); float32."""
        network: Any = self.network
        pixels = self._preprocess(images.to(self.device)).to(DTYPES[self.placement.dtype])
        tokens = self._tokenizer(
            prompts, padding=True, truncation=True, max_length=_PROMPT_TOKENS, return_tensors="pt"
        ).to(self.device)
        seen = network["vision"](pixels).last_hidden_state
        read = network["text"](
            tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
            is_decoder=False,
        )
        rating: Tensor = network["mlp"](read.last_hidden_state[:, 0])[:, 0]
        return rating.float(), seen[:, 0].float()


def _renamed(key: str) -> str:
    """A key of the official file as transformers names it; an unknown key stays, and is then unexpected."""
    for pattern, replacement in _RENAMED:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    return key
