"""Latents into images: the VAE of a diffusers policy."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.skeleton import Skeletal


class DecodingPolicy(Skeletal):
    """Decodes latents; see `DiffusersPolicy` for the attributes."""

    decode_batch: int
    decode_dtype: torch.dtype
    vae_device: str | None
    _half_vae: Any = None
    """The VAE in `decode_dtype`; the float32 one is what an exported pipeline is made of."""

    def _images(self, vae: Any, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of clean latents, both in the VAE's dtype, (B, C, H, W) -> (B, 3, height, width)."""
        unscaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        return cast("Tensor", vae.decode(unscaled, return_dict=False)[0])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of clean latents in `decode_dtype`, whatever autocast says.

        Args:
            latents: (B, C, H, W).

        Returns:
            (B, 3, height, width) uint8.

        Raises:
            GuardlitError: half precision that is a grey level or more off, on the first images that are decoded.
        """
        parts = torch.split(latents, self.decode_batch)
        with self._full_precision():
            vae = self._decoder(parts[0]).to(self.device)
            images = torch.cat([_grey(self._images(vae, part.to(self.decode_dtype))) for part in parts])
            if self.vae_device is not None:
                vae.to(self.vae_device)
        return images.round().to(torch.uint8)

    def _decoder(self, latents: Tensor) -> Any:
        """The VAE that decodes; one in half precision is made, and compared with float32, before its first use."""
        exact = self._outside["vae"]
        if self.decode_dtype == torch.float32 or self.weightless:
            return exact
        if self._half_vae is None:
            half = half_copy(exact, self.decode_dtype).to(self.device)
            images = self._images(exact.to(self.device), latents.float())
            exact.to("cpu")
            error = _grey(self._images(half, latents.to(self.decode_dtype))) - _grey(images)
            worst = float(error.abs().nan_to_num(torch.inf).max())
            if not worst < 1:
                raise GuardlitError(
                    f"decode_dtype={self.decode_dtype}: images are up to {worst:.2g} grey levels off those of float32 "
                    f"({float(error.abs().mean()):.2g} on average), and less than 1 is asked for; take fp32"
                )
            self._half_vae = half
        return self._half_vae


def half_copy(vae: Any, dtype: torch.dtype) -> Any:
    """A VAE in half precision, its convolutions' weights in the layout that tensor cores read."""
    half = copy.deepcopy(vae).to(dtype)
    for parameter in half.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return half


def _grey(images: Tensor) -> Tensor:
    """Grey levels, float32 in [0, 255], of images in [-1, 1]."""
    return (images.float() / 2 + 0.5).clamp(0, 1) * 255
