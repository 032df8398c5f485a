"""Qwen-Image: packed latents, masked prompts, renormalized guidance, a video VAE."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from guardlit.policies.diffusers_base import JOINT_ATTENTION, DiffusersPolicy
from guardlit.policies.packing import pack, unpack
from guardlit.policies.weights.lora import LoRA
from guardlit.types import Conditioning

DEFAULT_LORA = LoRA(64, 128)
"""Flow-GRPO's rank and alpha for Qwen-Image."""
FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")


class QwenImagePolicy(DiffusersPolicy):
    """A `QwenImagePipeline` folder or hub id as a policy.

    Embeddings are padded to `max_sequence_length` and masked, so that every forward pass has one shape, in rollouts and
    in training. They are 1.8 MB a prompt at 128 tokens in `fp32`.

    Args:
        model: a folder in the diffusers layout, or a hub id.
        resolution: height and width of the images in pixels.
        lora: the adapter to train, Flow-GRPO's rank and alpha for Qwen-Image by default; null trains the full
            transformer.
    """

    pipeline_class = "QwenImagePipeline"
    transformer_class = "QwenImageTransformer2DModel"
    vae_class = "AutoencoderKLQwenImage"
    lora_targets = (*JOINT_ATTENTION, *FEED_FORWARD)
    """Flow-GRPO's list for Qwen-Image: attention and both feed-forwards."""
    empty_prompt = " "
    """As in Flow-GRPO and in the pipeline's documentation."""
    packed = True
    guidance_call = 'true_cfg_scale={scale:g}, negative_prompt=" "'

    def __init__(self, model: str, resolution: int = 512, lora: LoRA | None = DEFAULT_LORA, **kwargs: Any) -> None:
        super().__init__(model, resolution, lora, **kwargs)

    def _vae_scale(self) -> int:
        return int(self._outside["vae"].spatial_compression_ratio)

    def _unused(self, transformer: Any) -> tuple[str, ...]:
        last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}"  # its text output is not used
        return tuple(f"{last}.{layer}" for layer in ("attn.to_add_out", *FEED_FORWARD[2:]))

    def _embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super()._embedding_shapes(), "mask": (self.max_sequence_length,)}

    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        length, encode = self.max_sequence_length, pipeline.encode_prompt
        # one by one: in a batch, the last bits of an embedding depend on the lengths of the others
        embeds = [encode(prompt, device=self.device, max_sequence_length=length)[0][0] for prompt in prompts]
        used = torch.tensor([len(rows) for rows in embeds])
        padded = torch.stack([pad(rows, (0, 0, 0, length - len(rows))) for rows in embeds])
        return {"prompt_embeds": padded, "mask": torch.arange(length) < used[:, None]}

    def _predict(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = latents.shape[-2:]
        tokens = self.transformer(
            hidden_states=pack(latents),
            timestep=sigma,
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_hidden_states_mask=conditioning["mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(latents),
            return_dict=False,
        )[0]
        return unpack(tokens, latents.shape)

    def _guide(self, without: Tensor, with_prompt: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance that keeps the norm of every token of the prompted velocity."""
        guided, reference = pack(super()._guide(without, with_prompt, scale)), pack(with_prompt)
        norms = [x.norm(dim=-1, keepdim=True) for x in (reference, guided)]
        return unpack(guided * (norms[0] / norms[1]), without.shape)

    def _images(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = (latents.new_tensor(x).view(-1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
        frames = vae.decode((latents * std + mean).unsqueeze(2), return_dict=False)[0]
        return cast("Tensor", frames.squeeze(2))

    def _latents(self, vae: Any, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(x).view(-1, 1, 1) for x in (vae.config.latents_mean, vae.config.latents_std))
        latents = vae.encode(images.unsqueeze(2)).latent_dist.mode().squeeze(2)
        return cast("Tensor", (latents - mean) / std)
