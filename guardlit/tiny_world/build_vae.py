"""The autoencoder of the tiny world: 32 x 32 images to 8 x 8 latents of 16 channels, as in Stable Diffusion 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

KL_WEIGHT = 1e-3


def train_vae(images: Tensor, steps: int, batch: int = 32) -> Any:
    """Train an `AutoencoderKL` on images (N, 3, 32, 32) in [-1, 1].

    Its scaling and shift factors make the latents of `images` zero-mean with unit variance.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch,))]
        posterior = vae.encode(x).latent_dist
        loss = mse_loss(vae.decode(posterior.sample()).sample, x) + KL_WEIGHT * posterior.kl().mean() / 1024
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.eval()
    with torch.no_grad():
        z = vae.encode(images).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / z.std().item(), shift_factor=z.mean().item())
    return vae


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Normalized latents (N, 16, 8, 8) of images (N, 3, 32, 32) in [-1, 1]."""
    z: Tensor = vae.encode(images).latent_dist.mode()
    return z.sub(vae.config.shift_factor).mul(vae.config.scaling_factor)
