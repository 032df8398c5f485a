"""A policy's exports: folders that its pipeline loads, and trained weights that it loads from them."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from guardlit_callbacks.distributed import is_first

from guardlit.policies.base import FlowPolicy
from guardlit.policies.folders.pipeline_folder import pipeline_folder, sample_digest
from guardlit.policies.weights.exported import exported_weights
from guardlit.policies.weights.full import full_network
from guardlit.policies.weights.lora import LoRA
from guardlit.policies.weights.lora_writing import adapter_state, save
from guardlit.policies.weights.quantized import Kind


class ExportingPolicy(FlowPolicy):
    """Writes and reads exported weights; see `DiffusersPolicy` for the attributes."""

    pipeline_class: ClassVar[str]
    transformer_class: ClassVar[str]
    model: str
    lora: LoRA | None
    resolution: int
    weights_dtype: torch.dtype
    quantization: Kind | None
    transformer: Any

    @abstractmethod
    def _pipeline(self, transformer: Any = None) -> Any:
        """The complete pipeline, text encoders included, with a transformer in place of the policy's own."""

    @abstractmethod
    def _encoder_settings(self) -> tuple[object, ...]:
        """Settings that change the embeddings of a prompt."""

    def export(self, folder: Path) -> None:
        """Write a LoRA file for `pipe.load_lora_weights`, or after full fine-tuning a pipeline folder.

        Collective: every rank must call it; the first one writes.
        """
        import diffusers

        if not self.lora:
            transformer = full_network(self.transformer, getattr(diffusers, self.transformer_class))
            if is_first():
                self._pipeline(transformer).save_pretrained(folder, safe_serialization=True)
            return
        weights, header = adapter_state(self.transformer)
        if is_first():
            save(weights, header, folder, getattr(diffusers, self.pipeline_class))

    def exported(self, folder: Path) -> AbstractContextManager[None]:
        """See `FlowPolicy.exported`."""
        return exported_weights(self.transformer, folder)

    def source(self) -> dict[str, str]:
        """See `FlowPolicy.source`."""
        folder = pipeline_folder(self.model, self.pipeline_class, ("transformer", "vae", "scheduler"))
        return {
            "policy": type(self).__name__,
            "model": self.model,
            "files": sample_digest([path for path in folder.glob("*/*") if path.is_file()]),
            "resolution": str(self.resolution),
            "weights_dtype": str(self.weights_dtype) + (f", {self.quantization}" if self.quantization else ""),
            "encoders": str(self._encoder_settings()),
        }
