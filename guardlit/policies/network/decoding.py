"""Latents into images: the VAE of a diffusers policy."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.policies.loading.skeleton import Skeletal


class DecodingPolicy(Skeletal):
    """Decodes latents; see `DiffusersPolicy` for the attributes."""

    decode_batch: int
    decode_dtype: torch.dtype
    vae_device: str | None
    _half_vae: tuple[Any, ...] = ()
    """The VAE in `decode_dtype`, once it is made; the float32 one is what an exported pipeline is made of."""

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
            GuardlitError: half precision that is a grey level or more off (root mean square) on the first images.
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
        if not self._half_vae:
            half = half_copy(exact, self.decode_dtype).to(self.device)
            images = self._images(exact.to(self.device), latents.float())
            exact.to("cpu")
            self._compare(_grey(self._images(half, latents.to(self.decode_dtype))) - _grey(images))
            self._half_vae = (half,)
        return self._half_vae[0]

    def _compare(self, error: Tensor) -> None:
        """Refuse, or tell, how far images are off, (B, 3, height, width) grey levels."""
        each = error.square().flatten(1).mean(dim=1).sqrt().nan_to_num(torch.inf)
        found = f"images are up to {float(each.max()):.2g} grey levels off those of float32 (root mean square)"
        if not float(each.max()) < 1:
            raise GuardlitError(f"decode_dtype={self.decode_dtype}: {found}, and less than 1 is asked for; take fp32")
        rank_zero_info(f"decode_dtype={self.decode_dtype}: {found}, a pixel up to {float(error.abs().max()):.2g}")


def half_copy(vae: Any, dtype: torch.dtype) -> Any:
    """A VAE in half precision, its convolutions' weights in the layout that tensor cores read."""
    half = nn.Module.to(copy.deepcopy(vae), dtype)  # the model's own `to` warns of nothing to warn of
    for parameter in half.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return half


def _grey(images: Tensor) -> Tensor:
    """Grey levels, float32 in [0, 255], of images in [-1, 1]."""
    return (images.float() / 2 + 0.5).clamp(0, 1) * 255
