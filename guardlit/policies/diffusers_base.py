"""What every diffusers pipeline shares as a policy: loading, prompts, guidance, decoding, weight sets and export."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.base import Shard
from guardlit.policies.limits import check_devices, check_limits
from guardlit.policies.loading.pipeline_folder import check_scaling, load_component, load_scheduler, pipeline_folder
from guardlit.policies.loading.skeleton import blocks_of, skeleton_component
from guardlit.policies.network.attention import set_attention
from guardlit.policies.network.compiling import CompiledBlocks
from guardlit.policies.network.decoding import DecodingPolicy
from guardlit.policies.network.precision import own_precision
from guardlit.policies.text.embeddings import EmbeddingCache, embeddings_folder
from guardlit.policies.text.prompted import PromptedPolicy
from guardlit.policies.weights.quantized import check_quantization, check_whole, load_quantized, quantize_skeleton
from guardlit.policies.weights.sets import AdapterWeights, FullWeights, LoRA
from guardlit.policies.weights.switching import SwitchingPolicy
from guardlit.types import Conditioning

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

ATTENTION = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_q", "to_v", "to_out.0")
JOINT_ATTENTION = tuple(f"attn.{name}" for name in ATTENTION)
"""Linear layers of attention over text and image together, as diffusers names them in most families."""


class DiffusersPolicy(PromptedPolicy, DecodingPolicy, SwitchingPolicy):
    """A diffusers pipeline folder or hub id as a policy; a subclass adds what one model family has of its own.

    It names the pipeline's classes below, turns prompts into embeddings in `_encode_prompts` (`prompted.py`), and calls
    the transformer in `_predict`. The other methods of the first section, and `_images` in `decoding.py`, have the form
    that most families share.

    Args:
        model: a folder in the diffusers layout, or a hub id.
        resolution: height and width of the images in pixels.
        lora: the adapter to train; null trains the whole transformer.
        weights_dtype: storage of what is frozen: `fp32`, `bf16` or `fp16`. What trains is float32 in any case, as are
            the velocities. Under `fp32` the network computes in the Trainer's precision; under the others in just that
            one, without autocast and its casts, as a pipeline does. `fp16` trains under `16-mixed` alone, whose loss
            scale its gradients need, `bf16` under `bf16-mixed` or `32-true`.
        quantization: how the frozen network's linear layers are stored: `nf4` (4 bits, bitsandbytes), `int8` or `fp8`
            (torchao), which the extra `guardlit[quant]` installs; null is `weights_dtype`, in which products are made
            in any case, from a weight that is unpacked for each: less memory, more time. It needs LoRA, and a network
            that is whole on each process; no adapter can be merged into it.
        gradient_checkpointing: recompute activations in the backward pass: a third more time, far less memory.
        max_sequence_length: text tokens; longer prompts are cut there, as the pipeline does.
        text_encoder_dtype: precision of the text encoders and of the embeddings that are kept.
        reference: with full fine-tuning, keep a copy of the base, for KL. With LoRA the base is always at hand.
        copies_device: where full fine-tuning keeps the old policy and the reference: `cpu`, from where one crosses the
            bus to a GPU once a round, and in every micro-batch with `old_velocity: recomputed`, and again with KL; or
            null for beside the weights.
        cache: folder for prompt embeddings; null keeps them in memory only, `auto` is `$GUARDLIT_CACHE` or
            `~/.cache/guardlit`.
        decode_batch: images that the VAE decodes at once.
        compile: `blocks` compiles the network's repeated blocks with `torch.compile`, each kind and shape once, which
            takes minutes; null runs it as it is. Kernels then round otherwise: the noise floor says by how much.
        attention_backend: diffusers' name of a backend for attention, such as `_native_cudnn`; a family whose layers do
            not know them (SD3) takes torch's own alone, `native` and `_native_...`. null leaves the choice to torch.
        decode_dtype: precision of the VAE. `fp16` or `bf16` is compared with `fp32` on the first images of a run, and
            refused where one of them is a grey level off (root mean square).
        vae_device: where the VAE is while it does not decode: `cpu`, or null for beside the weights.
        text_encoders: what becomes of the text encoders between new prompts: `free` drops them, `host` keeps them in
            the host's memory, which spares reading them again.
        encode_alone: have the frozen weights wait in the host's memory while prompts are encoded: the encoders' room is
            then not needed beside them. Sharded weights stay where they are.
    """

    pipeline_class: ClassVar[str]
    transformer_class: ClassVar[str]
    vae_class: ClassVar[str] = "AutoencoderKL"
    components: ClassVar[tuple[str, ...]] = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")
    """What the folder must hold."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Suffixes of the linear layers that `lora.targets: null` stands for."""

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
        self._outside: dict[str, Any] = {}  # frozen parts, hidden from nn.Module: VAE, scheduler
        self._dtype: torch.dtype
        self._embeddings: EmbeddingCache
        self._empty: Conditioning | None = None

    # what a family has of its own ---------------------------------------------------------------------------------

    @abstractmethod
    def _predict(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """One call of the transformer: the velocity of latents in its dtype, (B, C, H, W) -> (B, C, H, W)."""

    def _guide(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance from two velocities, (B, C, H, W) float32 each."""
        return without + scale * (with_prompt - without)

    def _vae_scale(self) -> int:
        """Pixels a side of one element of the VAE's latents."""
        return int(2 ** (len(self._outside["vae"].config.block_out_channels) - 1))

    def _token_pixels(self, transformer: Any) -> int:
        """Pixels a side of one token of the transformer: 2 x 2 elements of the latents."""
        return 2 * self._vae_scale()

    def _shift(self, num_steps: int, tokens: int) -> float:
        """`mu` of the schedule's dynamic shift for an image of so many tokens; a folder without one ignores it."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self._outside["scheduler"].config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return float(calculate_shift(tokens, *(config[name] for name in names)))

    def _schedule(self, num_steps: int) -> dict[str, Any]:
        """What the pipeline hands to its scheduler's `set_timesteps`."""
        tokens = (self.resolution // self._token_pixels(self.transformer)) ** 2
        return {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps), "mu": self._shift(num_steps, tokens)}

    def _unused(self, transformer: Any) -> tuple[str, ...]:
        """Layers that no image depends on: without a gradient, they would keep several processes waiting for one."""
        return ()

    # loading ------------------------------------------------------------------------------------------------------

    def load(self, shard: Shard | None = None) -> None:
        """Read transformer, VAE and scheduler; the text encoders wait for `encode`."""
        if self.transformer is not None:
            return
        check_whole(self.quantization, sharded=shard is not None)
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
        check_scaling(self._folder, vae)
        self._outside["vae"] = vae.requires_grad_(False).eval()
        self._outside["scheduler"] = load_scheduler(self._folder)
        self._check_resolution(transformer)
        if self.lora:
            self._sets = AdapterWeights(transformer, self.lora, self.lora_targets, self._unused(transformer))
        else:
            self._sets = FullWeights(transformer, self.reference, self.copies_device, self._unused(transformer))
        if self.attention_backend is not None:
            set_attention(transformer, self.attention_backend)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        blocks = blocks_of(transformer)  # by their classes' names, which sharding changes
        if shard is not None:
            shard(transformer, blocks)
        if self.compiled and not self.weightless:
            CompiledBlocks(blocks)
        self._sets.keep()
        self.transformer, self._dtype = transformer.eval(), transformer.dtype  # asked once: it walks all modules
        self._embeddings = EmbeddingCache(self._encoder_key(), embeddings_folder(self.cache))

    def _check_resolution(self, transformer: Any) -> None:
        multiple = self._token_pixels(transformer)
        if self.resolution < multiple or self.resolution % multiple:
            raise GuardlitError(f"resolution={self.resolution} must be a multiple of {multiple} for {self._folder}")

    def fingerprint(self) -> dict[str, str]:
        """Class, transformer config and adapter."""
        noted = ("quantization_config",)  # by diffusers, with its own and its backends' defaults
        config = {k: v for k, v in self.transformer.config.items() if not k.startswith("_") and k not in noted}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return {
            "policy": type(self).__name__,
            "transformer config": digest,
            "lora": f"{self.lora} on {self.quantization}" if self.quantization else str(self.lora),
            "resolution": str(self.resolution),
        }

    def sigmas(self, num_steps: int) -> Tensor:
        """The folder's own scheduler, (T + 1,) float64."""
        scheduler = self._outside["scheduler"]
        scheduler.set_timesteps(**self._schedule(num_steps))
        return cast("Tensor", scheduler.sigmas.double())

    # the model ----------------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """See `FlowPolicy.velocity`: (B, C, H, W) float32, guided when the scale is above 1."""
        if guidance_scale <= 1:
            return self._call(latents, sigma, conditioning)
        empty = {k: v.expand(len(latents), *v.shape[1:]) for k, v in self._empty_prompt().items()}
        with own_precision(self.forward_dtype, latents.device.type):  # autocast joins no halves of another kind
            both = {k: torch.cat([empty[k], v]) for k, v in conditioning.items()}
        without, with_prompt = self._call(latents.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return self._guide(without, with_prompt, guidance_scale)

    def _call(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """`_predict` in the network's precision, float32 at both ends."""
        with own_precision(self.forward_dtype, latents.device.type):
            return self._predict(latents.to(self._dtype), sigma, conditioning).float()
