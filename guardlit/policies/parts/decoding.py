"""Decoding of latents, and encoding of images, by a diffusers policy's VAE."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.policies.folders.embeddings import EmbeddingCache, embeddings_folder
from guardlit.policies.folders.pipeline_folder import sample_digest
from guardlit.policies.parts.skeleton import SkeletonPolicy


class DecodingPolicy(SkeletonPolicy):
    """Decodes latents and encodes images; see `DiffusersPolicy` for the attributes."""

    resolution: int
    decode_batch: int
    decode_dtype: torch.dtype
    vae_device: str | None
    _half_vae: tuple[Any, ...] = ()
    """The VAE in `decode_dtype`, made at its first use; an exported pipeline gets the float32 one."""

    def _images(self, vae: Any, latents: Tensor) -> Tensor:
        """Images in [-1, 1] of clean latents, both in the VAE's dtype, (B, C, H, W) -> (B, 3, height, width)."""
        unscaled = latents / vae.config.scaling_factor
        if vae.config.shift_factor is not None:
            unscaled = unscaled + vae.config.shift_factor
        return cast("Tensor", vae.decode(unscaled, return_dict=False)[0])

    def _latents(self, vae: Any, images: Tensor) -> Tensor:
        """The inverse of `_images`: (B, 3, height, width) in [-1, 1] -> (B, C, H, W), the mean of the VAE's latents."""
        latents = vae.encode(images).latent_dist.mode()
        if vae.config.shift_factor is not None:
            latents = latents - vae.config.shift_factor
        return cast("Tensor", latents * vae.config.scaling_factor)

    @property
    def image_size(self) -> tuple[int, int]:
        """See `ImagePolicy.image_size`."""
        return self.resolution, self.resolution

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """See `ImagePolicy.encode_images`: by the float32 VAE without autocast, which is then back where it was."""
        vae = self._outside["vae"]
        place = vae.device
        with self._full_precision():
            vae.to(self.device)
            parts = torch.split(images.to(self.device), self.decode_batch)
            latents = torch.cat([self._latents(vae, part.float() / 255 * 2 - 1) for part in parts])
            vae.to(place)
        return latents

    def latent_cache(self) -> EmbeddingCache:
        """See `ImagePolicy.latent_cache`: next to the prompt embeddings, by the content of the VAE's files."""
        files: list[Path] = [path for path in self._folder.glob("vae/*") if path.is_file()]
        key = f"{type(self).__name__}:{sample_digest(files)}:{self.resolution}"
        return EmbeddingCache(key, embeddings_folder(self.cache, "latents"), what="latents of images")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images of clean latents, computed in `decode_dtype` without autocast.

        Args:
            latents: (B, C, H, W).

        Returns:
            (B, 3, height, width) uint8.

        Raises:
            GuardlitError: in half precision, the first images are off by a gray level or more (root mean square).
        """
        parts = torch.split(latents, self.decode_batch)
        with self._full_precision():
            vae = self._decoder(parts[0]).to(self.device)
            images = torch.cat([_gray(self._images(vae, part.to(self.decode_dtype))) for part in parts])
            if self.vae_device is not None:
                vae.to(self.vae_device)
        return images.round().to(torch.uint8)

    def _decoder(self, latents: Tensor) -> Any:
        """The VAE in `decode_dtype`; one in half precision is compared with float32 before its first use."""
        exact = self._outside["vae"]
        if self.decode_dtype == torch.float32 or self.weightless:
            return exact
        if not self._half_vae:
            half = half_copy(exact, self.decode_dtype).to(self.device)
            images = self._images(exact.to(self.device), latents.float())
            exact.to("cpu")
            self._compare(_gray(self._images(half, latents.to(self.decode_dtype))) - _gray(images))
            self._half_vae = (half,)
        return self._half_vae[0]

    def _compare(self, error: Tensor) -> None:
        """Report the error of images, (B, 3, height, width) gray levels; raises `GuardlitError` if it is too large."""
        each = error.square().flatten(1).mean(dim=1).sqrt().nan_to_num(torch.inf)
        found = f"images are up to {float(each.max()):.2g} gray levels off those of float32 (root mean square)"
        if not float(each.max()) < 1:
            raise GuardlitError(f"decode_dtype={self.decode_dtype}: {found}; it must be less than 1: take fp32")
        rank_zero_info(f"decode_dtype={self.decode_dtype}: {found}, a pixel up to {float(error.abs().max()):.2g}")


def half_copy(vae: Any, dtype: torch.dtype) -> Any:
    """A VAE in half precision, its convolution weights in `channels_last`, the layout of tensor cores."""
    half = nn.Module.to(copy.deepcopy(vae), dtype)  # diffusers' own `to` warns about float16
    for parameter in half.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return half


def _gray(images: Tensor) -> Tensor:
    """Gray levels, float32 in [0, 255], of images in [-1, 1]."""
    return (images.float() / 2 + 0.5).clamp(0, 1) * 255
