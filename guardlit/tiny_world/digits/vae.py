"""Training of the digits' autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from guardlit.tiny_world.vae import VAESize, normalize_latents, untrained_vae

KL_WEIGHT = 1e-3
SIZE = VAESize(channels=(16, 32, 32), side=32)


def train_vae(images: Tensor, steps: int, batch: int = 32) -> Any:
    """Train an `AutoencoderKL` on images (N, 3, 32, 32) in [-1, 1]."""
    vae = untrained_vae(SIZE)
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
    normalize_latents(vae, images)
    return vae
