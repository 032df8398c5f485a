"""PickScore (arXiv:2305.01569): CLIP ViT-H/14 trained on human choices between two images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rewards.base import Scorer
from guardlit.rewards.clip_preprocess import ClipPreprocess
from guardlit.types import RewardRequest, RewardResult

_PUBLISHED_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NO_WEIGHTS = {"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}  # buffers in old files


class PickScore(Scorer):
    """exp(logit_scale) x cos(text, image), raw: about 100 x cosine, 18 to 24 for the published weights.

    Args:
        model: Hugging Face id or local folder of the CLIP model.
        processor: id or folder of tokenizer and image processor. By default the model's folder if it holds
            `preprocessor_config.json`, otherwise laion's CLIP ViT-H/14, as published with PickScore.
        dtype: precision of the two towers; the cosine is always taken in float32.
        batch_size: images, or texts, that go through a tower at once.
    """

    def __init__(
        self,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size of PickScore is {batch_size}; it must be at least 1")
        self.model = str(Path(model).expanduser()) if model.startswith("~") else model
        own = (Path(self.model) / "preprocessor_config.json").is_file()
        self.processor = processor or (self.model if own else _PUBLISHED_PROCESSOR)
        self.dtype = dtype
        self.batch_size = batch_size

    def setup(self, device: torch.device) -> None:
        """Load model, tokenizer and image processor; raises `GuardlitError` unless every weight is in its place."""
        from transformers import CLIPImageProcessor, CLIPTokenizer

        with _one_line(self.model):
            self._clip = _load_clip(self.model, _DTYPES[self.dtype]).to(device).eval().requires_grad_(False)
        with _one_line(self.processor):
            self._preprocess = ClipPreprocess.like(CLIPImageProcessor.from_pretrained(self.processor))
            self._tokenizer = CLIPTokenizer.from_pretrained(self.processor)
        # transformers makes up an empty vocabulary where the files are missing, and appends special tokens it does
        # not find: in both cases the text tower would be fed wrong ids without a word.
        known, expected = len(self._tokenizer), self._clip.config.text_config.vocab_size
        if known != expected:
            raise GuardlitError(
                f"{self.processor}: its tokenizer knows {known} tokens, the text encoder of {self.model} {expected}; "
                f"point `processor` to the folder with this model's vocab.json, merges.txt and tokenizer_config.json"
            )

    @torch.no_grad()
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B pairs of image and prompt; every different prompt is encoded once."""
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(request.prompts))}
        texts = torch.cat([self._embed_texts(list(rows)[chunk]) for chunk in self._chunks(len(rows))])
        images = torch.cat([self._embed_images(request.images[chunk]) for chunk in self._chunks(len(request))])
        matched = texts[[rows[prompt] for prompt in request.prompts]]
        cosine = torch.nn.functional.cosine_similarity(matched, images)
        provenance = {"scorer": self.name, "model": self.model, "processor": self.processor, "dtype": self.dtype}
        return RewardResult.from_values(self._clip.logit_scale.float().exp() * cosine, provenance=provenance)

    def _chunks(self, total: int) -> list[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, total, self.batch_size)]

    def _embed_texts(self, texts: list[str]) -> Tensor:
        length = self._clip.config.text_config.max_position_embeddings
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt").to(
            self._clip.device
        )
        embedding: Tensor = self._clip.get_text_features(**tokens).pooler_output
        return embedding.float()

    def _embed_images(self, images: Tensor) -> Tensor:
        pixels = self._preprocess(images.to(self._clip.device)).to(self._clip.dtype)
        embedding: Tensor = self._clip.get_image_features(pixel_values=pixels).pooler_output
        return embedding.float()


def _load_clip(name: str, dtype: torch.dtype) -> Any:
    from transformers import CLIPModel, PretrainedConfig

    kind = PretrainedConfig.get_config_dict(name)[0].get("model_type")
    if kind != "clip":
        found = f"its config.json says model_type {kind!r}" if kind else "it has no config.json with a model_type"
        raise GuardlitError(f"{name}: not a CLIP model, {found}; PickScore needs model_type 'clip'")
    # Without the report, missing weights would only be warned about and stay random.
    model, report = CLIPModel.from_pretrained(
        name, dtype=dtype, weights_only=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    wrong = {
        "missing": set(report["missing_keys"]),
        "unexpected": set(report["unexpected_keys"]) - _NO_WEIGHTS,
        "of wrong shape": {key for key, *_ in report["mismatched_keys"]},
    }
    for problem, keys in wrong.items():
        if keys:
            first = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise GuardlitError(
                f"{name}: {len(keys)} weights {problem} ({first}); the file must hold exactly the weights of the "
                f"CLIP model that its config.json describes"
            )
    return model


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn whatever transformers raises over a folder or id into one line that says what would be right."""
    try:
        yield
    except GuardlitError:
        raise
    except Exception as error:  # OSError, SafetensorError, UnpicklingError, JSON and key errors, ...
        if Path(name).is_dir():
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise GuardlitError(f"{name}: not a readable CLIP folder ({reason})") from error
        if name.startswith(("/", ".")):
            raise GuardlitError(f"there is no folder {Path(name).absolute()}; PickScore needs a CLIP folder") from error
        raise GuardlitError(
            f"{name}: neither a folder nor in the Hugging Face cache, and the hub is out of reach or lacks it; "
            f"run `hf download {name}` on a machine that is online, or name a local folder"
        ) from error
