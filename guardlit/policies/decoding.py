"""Latents into images: the VAE of a diffusers policy."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from guardlit.policies.skeleton import Skeletal


class DecodingPolicy(Skeletal):
    """Decodes latents; see `DiffusersPolicy` for the attributes."""

    decode_batch: int

    def _images(self, vae: Any, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of clean latents, both float32, (B, C, H, W) -> (B, 3, height, width)."""
        unscaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        return cast("Tensor", vae.decode(unscaled, return_dict=False)[0])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, height, width) uint8 of clean latents (B, C, H, W), in float32 whatever autocast says."""
        vae = self._outside["vae"].to(self.device)
        with self._full_precision():
            parts = torch.split(latents.float(), self.decode_batch)
            images = torch.cat([self._images(vae, part) for part in parts])
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
