"""Training of the signs' autoencoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guardlit.tiny_world.vae import VAESize, normalize_latents, untrained_vae

SIZE = VAESize(channels=(16, 32, 64, 64), side=64)
KL_WEIGHT = 1e-3
L1_WEIGHT = EDGE_WEIGHT = 0.3


def train_vae(images: Tensor, steps: int, batch: int = 6) -> Any:
    """Train an `AutoencoderKL` on images (N, 3, 64, 64) in [-1, 1].

    The loss has the differences between neighboring pixels too, so that the strokes of characters stay sharp. Small
    batches: at this size many steps count for more than exact gradients.
    """
    vae = untrained_vae(SIZE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2.5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch,))].contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        reconstructed = vae.decode(posterior.sample()).sample
        loss = _distance(reconstructed, x) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae.to(memory_format=torch.contiguous_format)
    normalize_latents(vae, images)
    return vae


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared and absolute differences, and absolute differences of the horizontal and vertical edges."""
    difference = a - b
    edges = difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return difference.square().mean() + L1_WEIGHT * difference.abs().mean() + EDGE_WEIGHT * edges
