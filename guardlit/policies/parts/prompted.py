"""Prompt embeddings of a diffusers policy: its text encoders load for new prompts, and embeddings are cached."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import torch
from guardlit_callbacks.distributed import gather_objects
from torch import nn
from torch.distributed.tensor import DTensor

from guardlit.devices.transfer import to_device
from guardlit.policies.folders.components import load_pipeline
from guardlit.policies.folders.embeddings import rank
from guardlit.policies.folders.pipeline_folder import sample_digest
from guardlit.policies.parts.export import ExportingPolicy
from guardlit.policies.parts.skeleton import SkeletonPolicy
from guardlit.types import Conditioning

ENCODING = ("text_encoder", "tokenizer")
"""Prefixes of the names of components that encode prompts."""


class PromptedPolicy(ExportingPolicy, SkeletonPolicy):
    """Encodes each prompt once; see `DiffusersPolicy` for the attributes."""

    empty_prompt: ClassVar[str | None] = ""
    """The unconditional prompt of classifier-free guidance; None for a family without such guidance."""
    text_encoders: str
    encode_alone: bool
    _empty: Conditioning | None
    _encoders: dict[str, Any] | None = None
    """Text encoders and tokenizers kept in host memory."""
    _dtype: torch.dtype

    @abstractmethod
    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        """Embeddings of P prompts from the pipeline's text encoders, (P, ...), of the same shape for every prompt."""

    def _encoder_settings(self) -> tuple[object, ...]:
        """Settings that change the embeddings of a prompt."""
        return (self.max_sequence_length, self.text_encoder_dtype)

    def _left_out(self) -> tuple[str, ...]:
        """Components that are not loaded."""
        return ()

    def _encoder_key(self) -> str:
        files = [p for name in ("text_encoder*", "tokenizer*") for p in self._folder.glob(f"{name}/*") if p.is_file()]
        return f"{self.pipeline_class}:{sample_digest(files)}:{self._encoder_settings()}"

    def _missing(self, prompts: Sequence[str], ahead: Sequence[str]) -> list[str]:
        """Prompts to encode: none unless one of `prompts` is new, then those of `ahead` too."""
        needed = [*prompts, *([] if self.empty_prompt is None else [self.empty_prompt])]
        return self._embeddings.missing([*needed, *ahead]) if self._embeddings.missing(needed) else []

    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Encode new prompts with the pipeline's text encoders, which are freed or kept as `text_encoders` says."""
        self._encode(self._missing(prompts, ahead))

    def encode_across_ranks(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Encode new prompts, each rank a part of them. Collective: every rank must call it.

        A rank reads the other parts from the cache folder; without a shared one they are sent over the network.
        """
        missing = list(dict.fromkeys(chain.from_iterable(gather_objects(self._missing(prompts, ahead)))))
        if missing:
            parts = self._embeddings.split_by_rank(missing)
            self._encode(parts[rank()])
            self._embeddings.exchange(parts)

    def _encode(self, prompts: list[str]) -> None:
        if not prompts:
            return
        with moved_to_host(self.transformer if self.encode_alone else None):
            self._run_encoders(prompts)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _run_encoders(self, prompts: list[str]) -> None:
        pipeline = self._pipeline()
        encoders = [v for k, v in pipeline.components.items() if k.startswith("text_encoder") and v is not None]
        for encoder in encoders:
            encoder.to(self.device)
        for prompt in prompts:
            # one at a time: kernels may round differently in another batch, and a resumed run must equal the original
            # although it encodes prompts in another order
            with torch.no_grad(), self._full_precision():
                self._embeddings.add([prompt], self._encode_prompts(pipeline, [prompt]))
        if self.text_encoders == "host":
            self._encoders = {k: v for k, v in pipeline.components.items() if k.startswith(ENCODING)}
            for encoder in encoders:
                encoder.to("cpu")

    def _pipeline(self, transformer: Any = None) -> Any:
        import diffusers

        parts = {"transformer": transformer or self.transformer, **self._outside, **dict.fromkeys(self._left_out())}
        return load_pipeline(
            getattr(diffusers, self.pipeline_class),
            self._folder,
            dtype=self.text_encoder_dtype,
            **parts,
            **(self._encoders or {}),
        )

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts' embeddings on the transformer's device, in its dtype except for masks."""
        with torch.autocast("cpu", enabled=False):  # autocast cannot stack float16
            table = self._embeddings.get(prompts)
        dtypes = {k: self._dtype if v.is_floating_point() else v.dtype for k, v in table.items()}
        return {k: to_device(v, self.device).to(dtypes[k]) for k, v in table.items()}

    def _empty_prompt(self) -> Conditioning:
        if self._empty is None or next(iter(self._empty.values())).device != self.device:
            self._empty = self.conditioning([self.empty_prompt or ""])
        return self._empty


@contextmanager
def moved_to_host(transformer: nn.Module | None) -> Iterator[None]:
    """Keep the frozen weights of a network in host memory, within the context.

    The first parameter stays on the device, since a policy takes its device from it, and so do sharded ones.

    Args:
        transformer: the network; None does nothing.
    """
    parameters = [] if transformer is None else list(transformer.parameters())[1:]
    moved: list[tuple[nn.Parameter, torch.device]] = []
    try:
        for parameter in parameters:
            # shards are small, and FSDP2 holds references to them
            if not parameter.requires_grad and not isinstance(parameter, DTensor):
                moved.append((parameter, parameter.device))
                _move(parameter, torch.device("cpu"))
        yield
    finally:
        for parameter, device in moved:
            _move(parameter, device)


@torch.inference_mode(False)  # validation encodes too: weights must not become inference tensors
def _move(parameter: nn.Parameter, device: torch.device) -> None:
    parameter.data = parameter.data.to(device)
