"""TF32: whether matrix products and convolutions of float32 on a GPU round their factors to 11 bits."""

from __future__ import annotations

import torch
from torch import backends


def allow_tf32(allowed: bool) -> None:
    """Enable or disable TF32 in products and convolutions of float32, for the process.

    torch's defaults differ: products do not use TF32, cuDNN's convolutions do. torch's newer `fp32_precision` is reset
    first: Lightning reads the older switches, which raise an error where both disagree.

    Args:
        allowed: whether TF32 is used, on GPUs since Ampere.
    """
    for place in (backends, backends.cudnn):
        place.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    backends.cudnn.allow_tf32 = allowed


def float32_products() -> dict[str, bool]:
    """Whether `matmul` and `convolution` of float32 currently use TF32, by either switch."""
    convolution = backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    now = {"matmul": backends.cuda.matmul.fp32_precision, "convolution": convolution}
    return {name: precision == "tf32" for name, precision in now.items()}
