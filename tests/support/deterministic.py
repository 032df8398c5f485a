"""Refuses what CUDA refuses under `torch.use_deterministic_algorithms(True)`, by that function's documentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.addbmm, aten.addmv, aten.mv, aten.dot}
WORKSPACES = (":4096:8", ":16:8")
"""Workspace settings with which cuBLAS is deterministic; read at its first product."""
NAMES = (
    "_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward avg_pool3d_backward "
    "fractional_max_pool2d_backward fractional_max_pool3d_backward max_unpool2d max_unpool3d nll_loss2d_forward "
    "upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward "
    "_upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward grid_sampler_2d_backward "
    "reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward _ctc_loss_backward histc kthvalue "
    "upsample_trilinear3d_backward grid_sampler_3d_backward put_ put"
)
REFUSED = {getattr(aten, name) for name in NAMES.split()}
OVERLOADS = {aten.median.dim, aten.median.dim_values, aten.nanmedian.dim, aten.nanmedian.dim_values}
"""Overloads with indices; the median alone is deterministic."""


def refuse(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise as CUDA does if an operation is nondeterministic and the process has forbidden that."""
    if not torch.are_deterministic_algorithms_enabled():
        return
    packet, words = func.overloadpacket, (*args, *kwargs.values())
    if packet in PRODUCTS and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in WORKSPACES:
        raise RuntimeError("Deterministic behavior was enabled, but CUBLAS_WORKSPACE_CONFIG is not set")
    weighted = packet is aten.bincount and (len(args) > 1 or kwargs.get("weights") is not None)
    multiplied = packet in (aten.scatter_reduce, aten.scatter_reduce_) and "prod" in words
    if packet in REFUSED or func in OVERLOADS or weighted or multiplied:
        raise RuntimeError(f"{func} does not have a deterministic implementation")
