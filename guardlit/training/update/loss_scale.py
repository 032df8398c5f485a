"""The loss scale of float16 training, for gradients that are accumulated over many micro-batches."""

from __future__ import annotations

import math
from typing import Any

import torch

FIRST, INTERVAL = 2.0**16, 2000
"""PyTorch's own first scale, and updates without an overflow after which it grows."""

GROWTH_INTERVAL = 100
"""The interval used here. A run makes a few thousand updates, two a round: with 2000 it would end before a scale that
four early overflows have divided by 16 recovers. Trying a larger one costs at most one update in 100."""


def fit_scale(plugin: Any, micro_batches: int) -> None:
    """Adapt a precision plugin's loss scaler to gradient accumulation; without a scaler, do nothing.

    Lightning divides the loss by the micro-batches of an update before it is scaled. Each micro-batch's gradient then
    passes through float16 that many times smaller than the scale is meant for, and in part as exact zeros. So the first
    scale is multiplied by that number, to the next power of two, which loses nothing. A scale that the user has set
    stays; so does a checkpoint's, which is restored after this.

    Args:
        plugin: of the Trainer, before training.
        micro_batches: of an update.
    """
    scaler = getattr(plugin, "scaler", None)
    if scaler is None or (scaler.get_scale(), scaler.get_growth_interval()) != (FIRST, INTERVAL):
        return
    scale = FIRST * 2.0 ** math.ceil(math.log2(micro_batches))
    plugin.scaler = torch.amp.GradScaler(plugin.device, init_scale=scale, growth_interval=GROWTH_INTERVAL)
