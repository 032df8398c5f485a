"""In which precision a network computes: the Trainer's autocast, or that of its own half-precision weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

HALVES = (torch.bfloat16, torch.float16)


def own_precision(dtype: torch.dtype | None, device: str) -> AbstractContextManager[Any]:
    """The context of a network's forward pass: without autocast where its weights and inputs are in half already.

    Autocast takes norms and softmax to float32 and casts back before each product, which moves more memory than the
    products themselves.

    Args:
        dtype: of weights and inputs; None leaves everything to autocast.
        device: the network's device type. The meta device knows no autocast.
    """
    if dtype is None or device == "meta":
        return nullcontext()
    return torch.autocast(device, enabled=False)
