"""The autoencoder of a tiny world: square images to 8 x 8 latents of 16 channels, as in Stable Diffusion 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class VAESize:
    """Channels of each level, from pixels to latents: one level more than the image's side has factors of 2 over 8."""

    channels: tuple[int, ...]
    side: int


def untrained_vae(size: VAESize) -> Any:
    """An `AutoencoderKL` with random weights."""
    from diffusers import AutoencoderKL

    levels = len(size.channels)
    return AutoencoderKL(
        block_out_channels=size.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=size.side,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def normalize_latents(vae: Any, images: Tensor) -> None:
    """Set scaling and shift factors that make the latents of `images` (N, 3, H, W) zero-mean with unit variance."""
    z = _latents(vae.eval(), images)
    vae.register_to_config(scaling_factor=1 / z.std().item(), shift_factor=z.mean().item())


def encode(vae: Any, images: Tensor) -> Tensor:
    """Normalized latents (N, 16, 8, 8) of images (N, 3, H, W) in [-1, 1]."""
    return _latents(vae, images).sub(vae.config.shift_factor).mul(vae.config.scaling_factor)


@torch.no_grad()
def _latents(vae: Any, images: Tensor) -> Tensor:
    at_once = 8_000_000 // images[0].numel()
    return torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(images, at_once)])
