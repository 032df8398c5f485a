"""FLUX.1: packed latents, a shift that grows with the image, guidance as an input of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guardlit.policies.diffusers_base import JOINT_ATTENTION, DiffusersPolicy
from guardlit.policies.limits import no_guidance
from guardlit.policies.packing import pack, positions, unpack
from guardlit.policies.weights.lora import LoRA
from guardlit.types import Conditioning

DEFAULT_LORA = LoRA(64, 128)
"""Flow-GRPO's for FLUX.1-dev."""
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


class FluxPolicy(DiffusersPolicy):
    """A `FluxPipeline` folder or hub id as a policy, made for FLUX.1-dev.

    `guidance_scale` is an input of the network, which is distilled: one forward pass a step at any scale.
    FLUX.1-schnell has no guidance, and takes only 1. A prompt's embeddings are 2.1 MB at 128 tokens in `fp32`.

    Args:
        model: a folder in the diffusers layout, or a hub id.
        resolution: height and width of the images in pixels.
        lora: the adapter to train, Flow-GRPO's for FLUX.1-dev by default; null trains the full transformer.
    """

    pipeline_class = "FluxPipeline"
    transformer_class = "FluxTransformer2DModel"
    components = (*DiffusersPolicy.components, "text_encoder_2", "tokenizer_2")
    lora_targets = (*JOINT_ATTENTION, *FEED_FORWARD)
    """Flow-GRPO's list for FLUX.1-dev: attention in all blocks, and both feed-forwards of the double-stream ones."""
    empty_prompt = None
    packed = True
    flow_sigmas = True

    def __init__(self, model: str, resolution: int = 512, lora: LoRA | None = DEFAULT_LORA, **kwargs: Any) -> None:
        super().__init__(model, resolution, lora, **kwargs)

    def _embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._embedding_shapes(), "pooled": (int(self.transformer.config.pooled_projection_dim),)}

    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        embeds, pooled, _ = pipeline.encode_prompt(
            prompts, None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """See `FlowPolicy.velocity`; raises `GuardlitError` above a scale of 1 if the network has no such input."""
        if self.transformer.config.guidance_embeds:
            conditioning = {**conditioning, "guidance": torch.full_like(sigma, guidance_scale)}
        elif guidance_scale > 1:
            raise no_guidance(self._folder, guidance_scale, "has no guidance embedding")
        return self._call(latents, sigma, conditioning)

    def unguided_scale(self, guidance_scale: float) -> float:
        """See `ImagePolicy.unguided_scale`: as configured, an input of the network."""
        return guidance_scale

    def _predict(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        embeds, (height, width) = conditioning["prompt_embeds"], latents.shape[-2:]
        tokens = self.transformer(
            hidden_states=pack(latents),
            timestep=sigma,
            guidance=conditioning.get("guidance"),
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=latents.device),
            img_ids=positions(1, height // 2, width // 2, device=latents.device),
            return_dict=False,
        )[0]
        return unpack(tokens, latents.shape)
