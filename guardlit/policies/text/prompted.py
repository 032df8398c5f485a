"""Prompts of a diffusers policy: its own text encoders, loaded for new prompts, and what they gave, kept."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import torch
from guardlit_callbacks.distributed.gather import gather_objects
from torch import nn
from torch.distributed.tensor import DTensor

from guardlit.policies.loading.pipeline_folder import load_pipeline
from guardlit.policies.loading.skeleton import Skeletal
from guardlit.policies.text.embeddings import rank, sample_digest
from guardlit.policies.weights.exported import FolderPolicy
from guardlit.types import Conditioning

ENCODING = ("text_encoder", "tokenizer")
"""What names of a pipeline's components that encode prompts begin with."""


class PromptedPolicy(FolderPolicy, Skeletal):
    """Encodes prompts once; see `DiffusersPolicy` for the attributes."""

    empty_prompt: ClassVar[str | None] = ""
    """The prompt that classifier-free guidance leads away from; None for a family that has no such guidance."""
    text_encoders: str
    encode_alone: bool
    _empty: Conditioning | None
    _encoders: dict[str, Any] | None = None
    """Text encoders and tokenizers that wait in the host's memory."""
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

    def _missing(self, prompts: Sequence[str], ahead: Sequence[str]) -> list[str]:
        """What is to be encoded: nothing, unless one of the prompts is new."""
        needed = [*prompts, *([] if self.empty_prompt is None else [self.empty_prompt])]
        return self._embeddings.missing([*needed, *ahead]) if self._embeddings.missing(needed) else []

    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Encode new prompts with the pipeline's own encoders; see `text_encoders` for what becomes of those."""
        self._encode(self._missing(prompts, ahead))

    def encode_across_ranks(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """See `FlowPolicy.encode_across_ranks`: each process encodes its part, and reads the others' from the cache.

        Without a cache folder, and where the processes have different ones, what is missing comes over the network.
        """
        missing = list(dict.fromkeys(chain.from_iterable(gather_objects(self._missing(prompts, ahead)))))
        if missing:
            shares = self._embeddings.shares(missing)
            self._encode(shares[rank()])
            self._embeddings.exchange(shares)

    def _encode(self, prompts: list[str]) -> None:
        if not prompts:
            return
        with set_aside(self.transformer if self.encode_alone else None):
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
            # one at a time: kernels may round otherwise for another batch, and a resumed run, which encodes prompts in
            # another order, would not be the same
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
        """What `_encode_prompts` gave, on the transformer's device and, but for masks, in its dtype."""
        with torch.autocast("cpu", enabled=False):  # it cannot stack float16
            table = self._embeddings.get(prompts)
        dtypes = {k: self._dtype if v.is_floating_point() else v.dtype for k, v in table.items()}
        return {k: v.to(self.device, dtypes[k]) for k, v in table.items()}

    def _empty_prompt(self) -> Conditioning:
        if self._empty is None or next(iter(self._empty.values())).device != self.device:
            self._empty = self.conditioning([self.empty_prompt or ""])
        return self._empty


@contextmanager
def set_aside(transformer: nn.Module | None) -> Iterator[None]:
    """The frozen weights of a network in the host's memory for as long as the context lasts.

    The first parameter stays, by which a policy knows where its network is.

    Args:
        transformer: whole or sharded; None does nothing.
    """
    parameters = [] if transformer is None else list(transformer.parameters())[1:]
    moved: list[tuple[nn.Parameter, torch.device]] = []
    try:
        for parameter in parameters:
            # sharded parts are small, and FSDP2 knows where they lie
            if not parameter.requires_grad and not isinstance(parameter, DTensor):
                moved.append((parameter, parameter.device))
                _move(parameter, torch.device("cpu"))
        yield
    finally:
        for parameter, device in moved:
            _move(parameter, device)


@torch.inference_mode(False)  # validation may be what encodes: weights must not become tensors of its mode
def _move(parameter: nn.Parameter, device: torch.device) -> None:
    parameter.data = parameter.data.to(device)
