"""The precision a network computes in: the Trainer's autocast, or its own half-precision weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def own_precision(dtype: torch.dtype | None, device: str) -> AbstractContextManager[Any]:
    """The context of a forward pass: disables autocast if weights and inputs are in half precision already.

    Autocast computes norms and softmax in float32 and casts back before each product, which moves more memory than the
    products themselves.

    Args:
        dtype: of weights and inputs; None keeps autocast as it is.
        device: the network's device type; the meta device has no autocast.
    """
    if dtype is None or device == "meta":
        return nullcontext()
    return torch.autocast(device, enabled=False)
