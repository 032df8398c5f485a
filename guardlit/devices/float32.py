"""What float32 means on a GPU: 24 bits of a number, or the 11 that TF32 leaves of it in products and convolutions."""

from __future__ import annotations

import torch
from torch import backends


def allow_tf32(allowed: bool) -> None:
    """Let products and convolutions of float32 round their factors to TF32, or see that none does; for the process.

    torch's own defaults differ: products do not, cuDNN's convolutions do. What was set by torch's newer
    `fp32_precision` is taken back first: torch refuses to read its older switches, as Lightning does, where both
    disagree.

    Args:
        allowed: whether they may, on GPUs since Ampere.
    """
    for place in (backends, backends.cudnn):
        place.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    backends.cudnn.allow_tf32 = allowed


def float32_products() -> dict[str, bool]:
    """Whether `matmul` and `convolution` of float32 may use TF32 by now, whichever switch said so."""
    convolution = backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    now = {"matmul": backends.cuda.matmul.fp32_precision, "convolution": convolution}
    return {name: precision == "tf32" for name, precision in now.items()}
