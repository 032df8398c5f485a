"""Latents as the sequences of tokens that some transformers read, and where a token stands."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Tensor) -> Tensor:
    """Tokens of 2 x 2 elements in rows from the top left, (B, C, H, W) -> (B, H/2 x W/2, 4 C)."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`, (B, H/2 x W/2, 4 C) -> (B, C, H, W); H and W are the last two of `shape`."""
    height, width = shape[-2:]
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2), 2)


def positions(*sizes: int, device: torch.device) -> Tensor:
    """The indices of every element of an array in its order, (elements, axes) float32."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32, device=device) for n in sizes))
