"""The base of all diffusers policies: loading, prompts, guidance, decoding, weight sets and export."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.policies.base import Shard
from guardlit.policies.folders.components import check_scaling, dynamic_shift, load_component, load_scheduler
from guardlit.policies.folders.embeddings import EmbeddingCache, embeddings_folder
from guardlit.policies.folders.pipeline_folder import pipeline_folder
from guardlit.policies.limits import check_devices, check_limits
from guardlit.policies.network.attention import set_attention
from guardlit.policies.network.compiling import CompiledBlocks, blocks_of
from guardlit.policies.network.precision import own_precision
from guardlit.policies.parts.decoding import DecodingPolicy
from guardlit.policies.parts.prompted import PromptedPolicy
from guardlit.policies.parts.skeleton import skeleton_component
from guardlit.policies.parts.switching import SwitchingPolicy
from guardlit.policies.weights.full import FullWeights
from guardlit.policies.weights.lora import AdapterWeights, LoRA, describe
from guardlit.policies.weights.quantized import check_quantization, check_unsharded, load_quantized, quantize_skeleton
from guardlit.types import Conditioning

ATTENTION = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_q", "to_v", "to_out.0")
JOINT_ATTENTION = tuple(f"attn.{name}" for name in ATTENTION)
"""Linear layers of joint attention over text and image, as diffusers names them in most families."""


class DiffusersPolicy(PromptedPolicy, DecodingPolicy, SwitchingPolicy):
    """A diffusers pipeline folder or hub id as a policy; a subclass adds what is specific to one model family.

    A subclass names the pipeline's classes below, encodes prompts in `_encode_prompts` (`parts/prompted.py`), and calls
    the transformer in `_predict`. It may override the other methods of the first section and `_images`
    (`parts/decoding.py`), whose defaults fit most families.

    Args:
        model: a folder in the diffusers layout, or a hub id.
        resolution: height and width of the images in pixels.
        lora: the adapter to train; null trains the full transformer.
        weights_dtype: storage of frozen weights: `fp32`, `bf16` or `fp16`. Trained weights and velocities are always
            float32. With `fp32` the network computes in the Trainer's precision; with the others in that dtype,
            without autocast and its casts, as a pipeline does. `fp16` trains under `16-mixed` only, whose loss scale
            its gradients need, `bf16` under `bf16-mixed` or `32-true`.
        quantization: storage of the frozen network's linear layers: `nf4` (4 bits, bitsandbytes), `int8` or `fp8`
            (torchao), which the extra `guardlit[quant]` installs; null is `weights_dtype`. Weights are dequantized for
            each product, in `weights_dtype`: less memory, more time. It needs LoRA and an unsharded network, and no
            adapter can be merged into it.
        gradient_checkpointing: recompute activations in the backward pass: a third more time, far less memory.
        max_sequence_length: text tokens; longer prompts are cut there, as the pipeline does.
        text_encoder_dtype: precision of the text encoders and of the cached embeddings.
        reference: with full fine-tuning, keep a copy of the base, for `model.kl` or `KLFromBase`. LoRA needs no copy.
        copies_device: where full fine-tuning stores the old policy and the reference. `cpu`: one crosses the bus to a
            GPU once a round, and in every micro-batch with `old_velocity: recomputed`, and again with KL. null: on the
            weights' device.
        cache: folder for prompt embeddings; null keeps them in memory only, `auto` is `$GUARDLIT_CACHE` or
            `~/.cache/guardlit`.
        decode_batch: images that the VAE decodes at once.
        compile: `blocks` compiles the network's repeated blocks with `torch.compile`, each kind and shape once, which
            takes minutes; null compiles nothing. Compiled kernels round differently: the noise floor shows by how much.
        attention_backend: diffusers' name of an attention backend, such as `_native_cudnn`; families whose layers do
            not support them (SD3) take torch's own only, `native` and `_native_...`. null leaves the choice to torch.
        decode_dtype: precision of the VAE. `fp16` or `bf16` is compared with `fp32` on the first images of a run, and
            refused if one of them is off by a gray level (root mean square).
        vae_device: where the VAE is while it does not decode: `cpu`, or null for the weights' device.
        text_encoders: after encoding, `free` drops the text encoders and `host` keeps them in host memory, so that they
            are not read again.
        encode_alone: move the frozen weights to host memory while prompts are encoded, so that the GPU need not hold
            both. Sharded weights stay.
    """

    pipeline_class: ClassVar[str]
    transformer_class: ClassVar[str]
    vae_class: ClassVar[str] = "AutoencoderKL"
    components: ClassVar[tuple[str, ...]] = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")
    """Components that the folder must have."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Suffixes of the linear layers that `lora.targets: null` selects."""
    flow_sigmas: ClassVar[bool] = False
    """Whether the pipeline follows `use_flow_sigmas` in its scheduler's configuration."""
    shifted_latents: ClassVar[bool] = True
    """Whether the VAE must have a `shift_factor`; false for VAEs of SDXL's kind, which have none."""
    packed: ClassVar[bool] = False
    """Whether the transformer takes 2 x 2 elements of the latents as the channels of one token; see `packing.pack`."""

    def __init__(
        self,
        model: str,
        resolution: int = 512,
        lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
        weights_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        gradient_checkpointing: bool = False,
        max_sequence_length: int = 128,
        text_encoder_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        reference: bool = False,
        copies_device: str | None = "cpu",
        cache: str | None = "auto",
        decode_batch: int = 8,
        compile: Literal["blocks"] | None = None,
        attention_backend: str | None = None,
        decode_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        vae_device: str | None = None,
        text_encoders: Literal["free", "host"] = "free",
        encode_alone: bool = False,
        quantization: Literal["nf4", "int8", "fp8"] | None = None,
    ) -> None:
        super().__init__()
        check_limits(resolution, max_sequence_length, decode_batch)
        check_devices(copies_device=copies_device, vae_device=vae_device)
        check_quantization(quantization, lora)
        self.model, self.resolution, self.lora = model, resolution, lora
        self.weights_dtype = DTYPES[weights_dtype]
        self.gradient_checkpointing = gradient_checkpointing
        self.max_sequence_length = max_sequence_length
        self.text_encoder_dtype = DTYPES[text_encoder_dtype]
        self.reference, self.copies_device = reference, copies_device
        self.cache, self.decode_batch = cache, decode_batch
        self.compiled, self.attention_backend = compile, attention_backend
        self.decode_dtype, self.vae_device = DTYPES[decode_dtype], vae_device
        self.text_encoders, self.encode_alone = text_encoders, encode_alone
        self.quantization = quantization
        self.transformer: Any = None
        self._folder: Path
        self._outside: dict[str, Any] = {}  # VAE and scheduler, hidden from nn.Module
        self._dtype: torch.dtype
        self._embeddings: EmbeddingCache
        self._empty: Conditioning | None = None

    # what families may override -----------------------------------------------------------------------------------

    @abstractmethod
    def _predict(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """One forward pass of the transformer in its dtype: latents (B, C, H, W) -> velocity (B, C, H, W)."""

    def _guide(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance from two velocities, (B, C, H, W) float32 each."""
        return without + scale * (with_prompt - without)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) before packing: (16, resolution / 8, resolution / 8) for most published models."""
        side = self.resolution // self._vae_scale()
        return (int(self.transformer.config.in_channels) // (4 if self.packed else 1), side, side)

    def _vae_scale(self) -> int:
        """Side of one element of the VAE's latents in pixels."""
        return int(2 ** (len(self._outside["vae"].config.block_out_channels) - 1))

    def _token_pixels(self, transformer: Any) -> int:
        """Side of one token of the transformer in pixels; a token is 2 x 2 elements of the latents."""
        return 2 * self._vae_scale()

    def _shift(self, num_steps: int, tokens: int) -> float:
        """`mu` of the schedule's dynamic shift for an image of `tokens` tokens; a folder without a shift ignores it."""
        config = self._outside["scheduler"].config
        return dynamic_shift(self._folder, config, tokens) if config.use_dynamic_shifting else 0.0

    def _schedule(self, num_steps: int) -> dict[str, Any]:
        """The arguments of the pipeline for its scheduler's `set_timesteps`."""
        tokens = (self.resolution // self._token_pixels(self.transformer)) ** 2
        mu = self._shift(num_steps, tokens)
        if self.flow_sigmas and self._outside["scheduler"].config.get("use_flow_sigmas"):
            return {"num_inference_steps": num_steps, "mu": mu}
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": mu}

    def _unused(self, transformer: Any) -> tuple[str, ...]:
        """Layers that do not affect the image; they get no gradient, which DDP would wait for, and so do not train."""
        return ()

    # loading ------------------------------------------------------------------------------------------------------

    def load(self, shard: Shard | None = None) -> None:
        """Load transformer, VAE and scheduler; `encode` loads the text encoders."""
        if self.transformer is not None:
            return
        check_unsharded(self.quantization, sharded=shard is not None)
        import diffusers

        read = skeleton_component if self.weightless else load_component
        self._folder = pipeline_folder(self.model, self.pipeline_class, self.components, weights=not self.weightless)
        dtype = self.weights_dtype if self.lora else torch.float32
        loader = getattr(diffusers, self.transformer_class)
        if self.quantization and not self.weightless:
            transformer = load_quantized(loader, self._folder, "transformer", dtype, self.quantization)
        else:
            transformer = read(loader, self._folder, "transformer", dtype=dtype)
            if self.quantization:
                quantize_skeleton(transformer, self.quantization)
        decoder_dtype = self.decode_dtype if self.weightless else torch.float32
        vae = read(getattr(diffusers, self.vae_class), self._folder, "vae", dtype=decoder_dtype)
        check_scaling(self._folder, vae, self.shifted_latents)
        self._outside["vae"] = vae.requires_grad_(False).eval()
        self._outside["scheduler"] = load_scheduler(self._folder)
        self._check_resolution(transformer)
        if self.lora:
            self._sets = AdapterWeights(
                transformer, self.lora, self.lora_targets, self._unused(transformer), self.renews
            )
        else:
            self._sets = FullWeights(transformer, self.reference, self.copies_device, self._unused(transformer))
        if self.attention_backend is not None:
            set_attention(transformer, self.attention_backend)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        blocks = blocks_of(transformer)  # found by class name, which sharding changes
        if shard is not None:
            shard(transformer, blocks)
        if self.compiled and not self.weightless:
            CompiledBlocks(blocks)
        self._sets.make_copies()
        self.transformer = transformer.eval()
        self._dtype = transformer.dtype  # read once: diffusers walks all modules for it
        self._embeddings = EmbeddingCache(self._encoder_key(), embeddings_folder(self.cache))

    def _check_resolution(self, transformer: Any) -> None:
        multiple = self._token_pixels(transformer)
        if self.resolution < multiple or self.resolution % multiple:
            raise GuardlitError(f"resolution={self.resolution} must be a multiple of {multiple} for {self._folder}")

    def fingerprint(self) -> dict[str, str]:
        """See `FlowPolicy.fingerprint`: class, transformer config, adapter and resolution."""
        added = ("quantization_config",)  # by diffusers, with defaults of its version
        config = {k: v for k, v in self.transformer.config.items() if not k.startswith("_") and k not in added}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
        adapter = describe(self.lora, self.transformer) if self.lora else str(None)
        return {
            "policy": type(self).__name__,
            "transformer config": digest,
            "lora": f"{adapter} on {self.quantization}" if self.quantization else adapter,
            "resolution": str(self.resolution),
        }

    def sigmas(self, num_steps: int) -> Tensor:
        """See `FlowPolicy.sigmas`: the schedule of the folder's scheduler, (T + 1,) float64."""
        scheduler = self._outside["scheduler"]
        scheduler.set_timesteps(**self._schedule(num_steps))
        return cast("Tensor", scheduler.sigmas.double())

    def shifted(self, times: Tensor, num_steps: int) -> Tensor:
        """See `ImagePolicy.shifted`: by the scheduler's shift for this image size."""
        config = self._outside["scheduler"].config
        if not config.use_dynamic_shifting:
            shift = float(config.shift)
            return shift * times / (1 + (shift - 1) * times)
        mu = self._schedule(num_steps)["mu"]
        return cast("Tensor", self._outside["scheduler"].time_shift(mu, 1.0, times))

    # forward pass -------------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """See `FlowPolicy.velocity`; guidance above a scale of 1 is classifier-free."""
        if guidance_scale <= 1:
            return self._call(latents, sigma, conditioning)
        empty = {k: v.expand(len(latents), *v.shape[1:]) for k, v in self._empty_prompt().items()}
        with own_precision(self.forward_dtype, latents.device.type):  # autocast cannot concatenate the other half dtype
            both = {k: torch.cat([empty[k], v]) for k, v in conditioning.items()}
        without, with_prompt = self._call(latents.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return self._guide(without, with_prompt, guidance_scale)

    def _call(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """`_predict` in the network's precision, float32 in and out."""
        with own_precision(self.forward_dtype, latents.device.type):
            return self._predict(latents.to(self._dtype), sigma, conditioning).float()
