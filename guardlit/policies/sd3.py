"""Stable Diffusion 3 and 3.5 through diffusers, with LoRA (peft) or full fine-tuning."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy, WeightSet
from guardlit.policies.embeddings import EmbeddingCache, cache_folder, sample_digest
from guardlit.policies.exported import exported_weights, pipeline_source
from guardlit.policies.folders import load_component, pipeline_folder, quiet
from guardlit.policies.weights import TRAINED, AdapterWeights, FullWeights, LoRA, WeightSets
from guardlit.types import Conditioning

PIPELINE = "StableDiffusion3Pipeline"
ATTENTION = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_q", "to_v", "to_out.0")
LORA_TARGETS = tuple(f"attn.{name}" for name in ATTENTION)
"""Flow-GRPO's list for SD3.5-M: joint attention only; SD3.5's second, image-only attention (attn2) is left out."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SD3Policy(FlowPolicy):
    """A `StableDiffusion3Pipeline` folder or hub id as a policy.

    Args:
        model: a folder in the diffusers layout, or a hub id.
        resolution: height and width of the images in pixels.
        lora: the adapter to train; null trains the whole transformer.
        weights_dtype: storage of what is frozen: `fp32`, `bf16` or `fp16`. What trains is float32 in any case; the
            forward's precision is the Trainer's.
        gradient_checkpointing: recompute activations in the backward pass: a third more time, far less memory.
        max_sequence_length: T5 tokens; 128 in Flow-GRPO.
        text_encoder_dtype: precision of the text encoders and of the embeddings that are kept: 3.4 MB a prompt of
            SD3.5 in `fp32`, half of it in `fp16` or `bf16`.
        text_encoder_3: false leaves T5 out (its embeddings are zeros then), as diffusers does.
        reference: with full fine-tuning, keep a copy of the base, for KL. With LoRA the base is always at hand.
        copies_device: where full fine-tuning keeps the old policy and the reference: `cpu`, or null for beside the
            weights.
        cache: folder for prompt embeddings; null keeps them in memory only, `auto` is `$GUARDLIT_CACHE` or
            `~/.cache/guardlit`.
        decode_batch: images that the VAE decodes at once.
    """

    def __init__(
        self,
        model: str,
        resolution: int = 512,
        lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
        weights_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        gradient_checkpointing: bool = False,
        max_sequence_length: int = 128,
        text_encoder_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        text_encoder_3: bool = True,
        reference: bool = False,
        copies_device: str | None = "cpu",
        cache: str | None = "auto",
        decode_batch: int = 8,
    ) -> None:
        super().__init__()
        self.model, self.resolution, self.lora = model, resolution, lora
        self.weights_dtype = DTYPES[weights_dtype]
        self.gradient_checkpointing = gradient_checkpointing
        self.max_sequence_length, self.text_encoder_3 = max_sequence_length, text_encoder_3
        self.text_encoder_dtype = DTYPES[text_encoder_dtype]
        self.reference, self.copies_device = reference, copies_device
        self.cache, self.decode_batch = cache, decode_batch
        self.transformer: Any = None
        self._folder: Path
        self._outside: dict[str, Any] = {}  # frozen parts, hidden from nn.Module: VAE, scheduler
        self._sets: WeightSets
        self._embeddings: EmbeddingCache
        self._empty: Conditioning | None = None

    def load(self) -> None:
        """Read transformer, VAE and scheduler; the text encoders wait for `encode`."""
        if self.transformer is not None:
            return
        from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

        self._folder = pipeline_folder(self.model, PIPELINE, ("transformer", "vae", "scheduler", "text_encoder"))
        dtype = self.weights_dtype if self.lora else torch.float32
        transformer = load_component(SD3Transformer2DModel, self._folder, "transformer", dtype=dtype)
        vae = load_component(AutoencoderKL, self._folder, "vae", dtype=torch.float32)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self._folder, subfolder="scheduler")
        self._outside |= {"vae": vae.requires_grad_(False).eval(), "scheduler": scheduler}
        self._check_resolution(transformer)
        if self.lora:
            self._sets = AdapterWeights(transformer, self.lora, LORA_TARGETS)
        else:
            self._sets = FullWeights(transformer, self.reference, self.copies_device)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        self.transformer = transformer.eval()
        self._embeddings = EmbeddingCache(self._encoder_key(), self._cache_folder())

    def _check_resolution(self, transformer: Any) -> None:
        config, scale = transformer.config, self._vae_scale()
        multiple = scale * config.patch_size
        if self.resolution < multiple or self.resolution % multiple:
            raise GuardlitError(f"resolution={self.resolution} must be a multiple of {multiple} for {self._folder}")
        if (patches := self.resolution // multiple) > config.pos_embed_max_size:
            raise GuardlitError(
                f"resolution={self.resolution} needs {patches} patches a side; {self._folder} has positions for "
                f"{config.pos_embed_max_size}: at most {config.pos_embed_max_size * multiple} pixels"
            )

    def _vae_scale(self) -> int:
        return int(2 ** (len(self._outside["vae"].config.block_out_channels) - 1))

    def fingerprint(self) -> dict[str, str]:
        """Class, transformer config and adapter."""
        config = {k: v for k, v in self.transformer.config.items() if not k.startswith("_")}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return {
            "policy": type(self).__name__,
            "transformer config": digest,
            "lora": str(self.lora),
            "resolution": str(self.resolution),
        }

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(16, resolution / 8, resolution / 8) for the published models."""
        side = self.resolution // self._vae_scale()
        return (int(self.transformer.config.in_channels), side, side)

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        device: torch.device = next(self.transformer.parameters()).device
        return device

    def sigmas(self, num_steps: int) -> Tensor:
        """The folder's own scheduler, (T + 1,) float64."""
        scheduler = self._outside["scheduler"]
        if scheduler.config.use_dynamic_shifting:
            raise GuardlitError(
                f"{self._folder}/scheduler asks for dynamic shifting, which {PIPELINE} models do not use"
            )
        scheduler.set_timesteps(num_steps)
        sigmas: Tensor = scheduler.sigmas
        return sigmas.double()

    # prompts ------------------------------------------------------------------------------------------------------

    def _cache_folder(self) -> Path | None:
        if self.cache is None:
            return None
        return (cache_folder() if self.cache == "auto" else Path(self.cache)) / "embeddings"

    def _encoder_key(self) -> str:
        files = [p for name in ("text_encoder*", "tokenizer*") for p in self._folder.glob(f"{name}/*") if p.is_file()]
        settings = (self.max_sequence_length, self.text_encoder_3, self.text_encoder_dtype)
        return f"{PIPELINE}:{sample_digest(files)}:{settings}"

    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Encode new prompts with the pipeline's own encoders, which are freed again afterwards."""
        if not self._embeddings.missing([*prompts, ""]):
            return
        missing = self._embeddings.missing([*prompts, "", *ahead])
        pipeline = self._pipeline(with_text_encoders=True)
        for prompt in missing:
            # one at a time: kernels may round otherwise for another batch, and a resumed run, which encodes prompts in
            # another order, would not be the same
            self._embeddings.add([prompt], self._encode_prompt(pipeline, prompt))
        del pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _encode_prompt(self, pipeline: Any, prompt: str) -> Conditioning:
        with torch.autocast(self.device.type, enabled=False):
            embeds, _, pooled, _ = pipeline.encode_prompt(
                [prompt],
                None,
                None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.max_sequence_length,
            )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def _pipeline(self, with_text_encoders: bool) -> Any:
        from diffusers import StableDiffusion3Pipeline

        parts = {"transformer": self.transformer, **self._outside}
        names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
        absent = () if with_text_encoders and self.text_encoder_3 else ("text_encoder_3", "tokenizer_3")
        parts |= dict.fromkeys(names if not with_text_encoders else absent)
        quiet()
        try:
            pipeline = StableDiffusion3Pipeline.from_pretrained(
                self._folder, local_files_only=True, dtype=self.text_encoder_dtype, **parts
            )
        except Exception as error:  # as in load_component
            reason = " ".join(str(error).split())[:300]
            raise GuardlitError(f"{self._folder}: text encoders cannot be loaded: {reason}") from error
        for name in names:
            if name.startswith("text") and getattr(pipeline, name) is not None:
                getattr(pipeline, name).to(self.device)
        return pipeline

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """`prompt_embeds` (P, L, D) and `pooled` (P, D') on the transformer's device."""
        with torch.autocast("cpu", enabled=False):  # it cannot stack float16
            table = self._embeddings.get(prompts)
        return {k: v.to(self.device, self.transformer.dtype) for k, v in table.items()}

    def _empty_prompt(self) -> Conditioning:
        if self._empty is None or self._empty["pooled"].device != self.device:
            self._empty = self.conditioning([""])
        return self._empty

    # the model ----------------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """See `FlowPolicy.velocity`: (B, C, H, W) float32, guided when the scale is above 1."""
        rows, guided = len(latents), guidance_scale > 1
        embeds, pooled = conditioning["prompt_embeds"], conditioning["pooled"]
        if guided:
            empty = self._empty_prompt()
            embeds = torch.cat([empty["prompt_embeds"].expand(rows, -1, -1), embeds])
            pooled = torch.cat([empty["pooled"].expand(rows, -1), pooled])
            latents, sigma = latents.repeat(2, 1, 1, 1), sigma.repeat(2)
        prediction: Tensor = self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            timestep=sigma * 1000,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0].float()
        if not guided:
            return prediction
        without, with_prompt = prediction.chunk(2)
        return without + guidance_scale * (with_prompt - without)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8 of clean latents (B, C, H, W), in float32 whatever autocast says."""
        vae = self._outside["vae"].to(self.device)
        latents = latents / vae.config.scaling_factor + vae.config.shift_factor
        with torch.autocast(self.device.type, enabled=False):
            parts = torch.split(latents.float(), self.decode_batch)
            images = torch.cat([vae.decode(part, return_dict=False)[0] for part in parts])
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)

    # weights ------------------------------------------------------------------------------------------------------

    def using(self, weights: WeightSet) -> AbstractContextManager[None]:
        """See `FlowPolicy.using`."""
        return self._sets.using(weights)

    def refresh_old(self) -> None:
        """See `FlowPolicy.refresh_old`."""
        self._sets.refresh_old()

    def old_state(self) -> dict[str, Tensor]:
        """See `FlowPolicy.old_state`."""
        return self._sets.old_state()

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FlowPolicy.load_old_state`."""
        self._sets.load_old_state(state)

    def export(self, folder: Path) -> None:
        """A LoRA file for `pipe.load_lora_weights`, or, after full fine-tuning, a whole pipeline folder."""
        if not self.lora:
            pipeline = self._pipeline(with_text_encoders=True)
            pipeline.save_pretrained(folder, safe_serialization=True)
            return
        from diffusers import StableDiffusion3Pipeline
        from peft.utils import get_peft_model_state_dict

        state = {k: v.detach().cpu() for k, v in self.transformer.state_dict().items() if f".{TRAINED}." in k}
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(self.transformer, state_dict=state, adapter_name=TRAINED),
            # without it diffusers takes alpha = rank
            transformer_lora_adapter_metadata=self.transformer.peft_config[TRAINED].to_dict(),
        )

    def exported(self, folder: Path) -> AbstractContextManager[None]:
        """See `FlowPolicy.exported`."""
        return exported_weights(self.transformer, folder, PIPELINE)

    def source(self) -> dict[str, str]:
        """See `FlowPolicy.source`."""
        options = ("resolution", "weights_dtype", "max_sequence_length", "text_encoder_dtype", "text_encoder_3")
        return pipeline_source(self, PIPELINE, options)
