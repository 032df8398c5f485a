"""FLUX.2 klein: latents that are tokens already, one language model for the prompts, guidance for the base models."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from guardlit.policies.base import Shard
from guardlit.policies.diffusers_base import JOINT_ATTENTION, DiffusersPolicy
from guardlit.policies.folders.pipeline_folder import pipeline_index
from guardlit.policies.limits import no_guidance
from guardlit.policies.packing import positions
from guardlit.policies.weights.lora import LoRA
from guardlit.types import Conditioning

DEFAULT_LORA = LoRA(16, 32)
"""UniRL's rank and alpha for FLUX.2-klein."""
FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")


class Flux2KleinPolicy(DiffusersPolicy):
    """A `Flux2KleinPipeline` folder or hub id as a policy.

    The step-distilled models (`is_distilled` in their model_index.json) have no guidance, and take only a scale of 1.
    The network also reads the padding of a prompt, so `max_sequence_length` defaults to the pipeline's. Embeddings are
    large: 512 rows of three layers' states a prompt; `text_encoder_dtype: bf16` halves them.

    Args:
        model: a folder in the diffusers layout, or a hub id.
        resolution: height and width of the images in pixels.
        lora: the adapter to train, UniRL's rank and alpha for FLUX.2-klein by default; null trains the full
            transformer.
        max_sequence_length: text tokens; longer prompts are cut there, as the pipeline does.
    """

    pipeline_class = "Flux2KleinPipeline"
    transformer_class = "Flux2Transformer2DModel"
    vae_class = "AutoencoderKLFlux2"
    lora_targets = (*JOINT_ATTENTION, *FEED_FORWARD, "attn.to_qkv_mlp_proj")
    """UniRL's list for FLUX.2-klein; in single-stream blocks, attention and feed-forward share one projection."""
    flow_sigmas = True

    def __init__(
        self,
        model: str,
        resolution: int = 512,
        lora: LoRA | None = DEFAULT_LORA,
        *,
        max_sequence_length: int = 512,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, resolution, lora, max_sequence_length=max_sequence_length, **kwargs)

    def load(self, shard: Shard | None = None) -> None:
        """See `DiffusersPolicy.load`."""
        super().load(shard)
        self._distilled = bool(pipeline_index(self._folder).get("is_distilled"))

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(128, resolution / 16, resolution / 16) for the published models: 2 x 2 VAE latents are in the channels."""
        side = self.resolution // self._token_pixels(self.transformer)
        return (int(self.transformer.config.in_channels), side, side)

    def _shift(self, num_steps: int, tokens: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return float(compute_empirical_mu(tokens, num_steps))

    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        embeds, _ = pipeline.encode_prompt(prompts, device=self.device, max_sequence_length=self.max_sequence_length)
        return {"prompt_embeds": embeds}

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """See `FlowPolicy.velocity`; raises `GuardlitError` for guidance of a distilled model."""
        if guidance_scale > 1 and self._distilled:
            raise no_guidance(self._folder, guidance_scale, "is a distilled model")
        return super().velocity(latents, sigma, conditioning, guidance_scale)

    def _predict(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        embeds, (height, width) = conditioning["prompt_embeds"], latents.shape[-2:]
        tokens = self.transformer(
            hidden_states=latents.flatten(2).transpose(1, 2),
            timestep=sigma,
            encoder_hidden_states=embeds,
            txt_ids=positions(1, 1, 1, embeds.shape[1], device=latents.device),
            img_ids=positions(1, height, width, 1, device=latents.device),
            return_dict=False,
        )[0]
        return cast("Tensor", tokens.transpose(1, 2).reshape(latents.shape))

    def _images(self, vae: Any, latents: Tensor) -> Tensor:
        mean, std = _statistics(vae)
        return cast("Tensor", vae.decode(pixel_shuffle(latents * std + mean, 2), return_dict=False)[0])

    def _latents(self, vae: Any, images: Tensor) -> Tensor:
        mean, std = _statistics(vae)
        return (pixel_unshuffle(vae.encode(images).latent_dist.mode(), 2) - mean) / std


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents' channels, which the VAE keeps in a batch norm, (4 C, 1, 1) each."""
    mean, std = vae.bn.running_mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)
