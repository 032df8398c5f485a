"""A policy's exports: files for other programs, and trained weights that it loads from them."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch
from guardlit_callbacks.distributed import is_first

from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.policies.exports.base_model import base_license, hub_id, public_name
from guardlit.policies.exports.comfyui import check_comfyui, comfyui_state, save_comfyui
from guardlit.policies.exports.facts import ExportFacts, ExportFormat
from guardlit.policies.exports.merging import merged_network
from guardlit.policies.exports.peft_folder import save_peft
from guardlit.policies.exports.places import check_place, hide_paths
from guardlit.policies.exports.usage import Pipeline, usage
from guardlit.policies.folders.pipeline_folder import pipeline_folder, sample_digest
from guardlit.policies.weights.exported import exported_weights
from guardlit.policies.weights.full import full_network
from guardlit.policies.weights.lora import TRAINED, LoRA, trained_layers
from guardlit.policies.weights.lora_writing import adapter_state, most_common, save, trained_adapter
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
    max_sequence_length: int
    guidance_call: ClassVar[str] = "guidance_scale={scale:g}"
    """The pipeline's argument for a guidance scale."""
    _folder: Path

    @abstractmethod
    def _pipeline(self, transformer: Any = None) -> Any:
        """The complete pipeline, text encoders included, with a transformer in place of the policy's own."""

    @abstractmethod
    def _left_out(self) -> tuple[str, ...]:
        """Components that are not loaded."""

    @abstractmethod
    def _encoder_settings(self) -> tuple[object, ...]:
        """Settings that change the embeddings of a prompt."""

    def check_export(self, to: ExportFormat, merged: bool) -> None:
        """See `FlowPolicy.check_export`."""
        if not self.lora and to != "diffusers":
            raise GuardlitError(
                f"--to {to} writes a LoRA, and this run trains the complete transformer: use --to diffusers, whose "
                "pipeline folder diffusers loads, or train with model.policy.lora"
            )
        if merged and to == "comfyui":
            raise GuardlitError(
                "--to comfyui --merged true: diffusers cannot write the original's file of complete weights; leave "
                "--merged out for a LoRA, or use --to diffusers for a merged pipeline folder"
            )
        if merged and to == "peft":
            raise GuardlitError("--to peft writes an adapter: leave --merged out, or use --to diffusers")
        if to == "comfyui":
            check_comfyui(self.transformer_class)

    def export(self, folder: Path | str, to: ExportFormat = "diffusers", merged: bool = False) -> None:
        """See `FlowPolicy.export`: a LoRA, or with `merged` or after full fine-tuning a pipeline folder."""
        import diffusers

        folder = Path(folder)
        self.check_export(to, merged)
        check_place(folder, to, whole=merged or not self.lora)
        kind = getattr(diffusers, self.transformer_class)
        if merged or not self.lora:
            complete = merged_network if self.lora else full_network
            transformer = complete(self.transformer, kind)
            if is_first():
                self._pipeline(transformer).save_pretrained(folder, safe_serialization=True)
                hide_paths(folder, public_name(self.model))
        elif to == "diffusers":
            weights, header = adapter_state(self.transformer)
            if is_first():
                save(weights, header, folder, getattr(diffusers, self.pipeline_class))
        else:
            adapter = trained_adapter(self.transformer)
            if is_first() and to == "peft":
                save_peft(adapter, self.transformer, hub_id(self.model), folder)
            elif to == "comfyui":
                state = comfyui_state(adapter, self.transformer_class)  # on all ranks, since it may refuse
                if is_first():
                    save_comfyui(state, folder)

    def export_facts(
        self, to: ExportFormat, merged: bool, steps: int, scale: float, base_steps: int = 0
    ) -> ExportFacts:
        """See `FlowPolicy.export_facts`."""
        adapter = self.lora is not None and not merged
        base = public_name(self.model)
        dtype = str(self.weights_dtype if self.lora else torch.float32).removeprefix("torch.")
        side, length = f"height={self.resolution}, width={self.resolution}", self.max_sequence_length
        sampling = f"num_inference_steps={steps}, {self.guidance_call.format(scale=scale)}"
        call = (sampling, side, f"max_sequence_length={length}")
        without = tuple(self._left_out())
        pipeline = Pipeline(self.pipeline_class, self.transformer_class, base, dtype, without, call, steps, base_steps)
        last = {"denoising steps of the base model": f"the last {base_steps} of {steps}"} if base_steps else {}
        return ExportFacts(
            base=base,
            hub_id=hub_id(self.model),
            adapter=adapter,
            library={"comfyui": "", "peft": "peft"}.get(to, "diffusers"),
            license=base_license(self.model, self._folder),
            usage=usage(pipeline, to, adapter),
            settings={**(self._adapter_settings() if self.lora else {}), **last},
        )

    def _adapter_settings(self) -> dict[str, str]:
        layers = trained_layers(self.transformer).values()
        rank = most_common(layer.r[TRAINED] for layer in layers)
        alpha = most_common(layer.scaling[TRAINED] * layer.r[TRAINED] for layer in layers)
        return {"LoRA rank": str(rank), "LoRA alpha": f"{alpha:g}", "LoRA layers": str(len(layers))}

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
