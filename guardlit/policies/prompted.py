"""Prompts of a diffusers policy: its own text encoders, loaded for new prompts, and what they gave, kept."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from guardlit.policies.embeddings import sample_digest
from guardlit.policies.exported import FolderPolicy
from guardlit.policies.folders import load_pipeline
from guardlit.policies.skeleton import Skeletal
from guardlit.types import Conditioning


class PromptedPolicy(FolderPolicy, Skeletal):
    """Encodes prompts once; see `DiffusersPolicy` for the attributes."""

    empty_prompt: ClassVar[str | None] = ""
    """The prompt that classifier-free guidance leads away from; None for a family that has no such guidance."""
    _empty: Conditioning | None
    _dtype: torch.dtype

    @abstractmethod
    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        """Embeddings of P prompts by the pipeline's text encoders, (P, ...), of the same shape for every prompt."""

    def _encoder_settings(self) -> tuple[object, ...]:
        """What besides the encoders' files decides about the embeddings."""
        return (self.max_sequence_length, self.text_encoder_dtype)

    def _left_out(self) -> tuple[str, ...]:
        """Components that are not to be loaded."""
        return ()

    def _encoder_key(self) -> str:
        files = [p for name in ("text_encoder*", "tokenizer*") for p in self._folder.glob(f"{name}/*") if p.is_file()]
        return f"{self.pipeline_class}:{sample_digest(files)}:{self._encoder_settings()}"

    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Encode new prompts with the pipeline's own encoders, which are freed again afterwards."""
        needed = [*prompts, *([] if self.empty_prompt is None else [self.empty_prompt])]
        if not self._embeddings.missing(needed):
            return
        missing = self._embeddings.missing([*needed, *ahead])
        pipeline = self._pipeline()
        for prompt in missing:
            # one at a time: kernels may round otherwise for another batch, and a resumed run, which encodes prompts in
            # another order, would not be the same
            with torch.no_grad(), self._full_precision():
                self._embeddings.add([prompt], self._encode_prompts(pipeline, [prompt]))
        del pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _pipeline(self, transformer: Any = None) -> Any:
        import diffusers

        parts = {"transformer": transformer or self.transformer, **self._outside, **dict.fromkeys(self._left_out())}
        pipeline = load_pipeline(
            getattr(diffusers, self.pipeline_class), self._folder, dtype=self.text_encoder_dtype, **parts
        )
        for name, part in pipeline.components.items():
            if name.startswith("text_encoder") and part is not None:
                part.to(self.device)
        return pipeline

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """What `_encode_prompts` gave, on the transformer's device and, but for masks, in its dtype."""
        with torch.autocast("cpu", enabled=False):  # it cannot stack float16
            table = self._embeddings.get(prompts)
        dtypes = {k: self._dtype if v.is_floating_point() else v.dtype for k, v in table.items()}
        return {k: v.to(self.device, dtypes[k]) for k, v in table.items()}

    def _empty_prompt(self) -> Conditioning:
        if self._empty is None or next(iter(self._empty.values())).device != self.device:
            self._empty = self.conditioning([self.empty_prompt or ""])
        return self._empty
