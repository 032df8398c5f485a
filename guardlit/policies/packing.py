"""Latents packed into the tokens of a transformer, and the tokens' positions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Tensor) -> Tensor:
    """Pack 2 x 2 elements into one token, row by row, (B, C, H, W) -> (B, H/2 x W/2, 4 C)."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`, (B, H/2 x W/2, 4 C) -> (B, C, H, W); H and W are the last two of `shape`."""
    height, width = shape[-2:]
    return pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2), 2)


def positions(*sizes: int, device: torch.device) -> Tensor:
    """Indices of every element of an array of these sizes, (elements, axes) float32."""
    return torch.cartesian_prod(*(torch.arange(n, dtype=torch.float32, device=device) for n in sizes))
