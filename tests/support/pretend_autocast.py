"""CUDA's autocast for the simulated device: PyTorch's reads a tensor's C++ device and does not cast these.

PyTorch's dispatcher lists the operations that autocast changes; "Automatic Mixed Precision" in its manual says how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pretend_tensor import DeviceTensor
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

KEY = "AutocastCUDA"
# fmt: off
LOWER = {
    "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d", "conv2d", "conv3d", "conv_tbc",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "_convolution", "einsum",
    "linalg_multi_dot", "linalg_vecdot", "linear", "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention"
}
WIDEST = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cat", "cross", "dot", "grid_sampler", "index_put", "scatter_add",
    "stack", "tensordot", "vdot"
}
# fmt: on
RESULT_IN_FLOAT = {"cumprod", "cumsum", "log_softmax", "prod", "softmax", "sum"}
"""They get float32 as the dtype of their result by default; all others get float32 arguments."""

_library = torch.library.Library("aten", "IMPL")


def _dtype(name: str, args: object) -> torch.dtype:
    if name in LOWER:
        return torch.get_autocast_dtype("cuda")
    floats = {leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    return torch.float32 if name not in WIDEST or torch.float32 in floats else torch.get_autocast_dtype("cuda")


def _kernel(operation: Any, name: str) -> Callable[..., Any]:
    arguments = {argument.name: place for place, argument in enumerate(operation._schema.arguments)}

    def cast(*args: Any, **options: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)):
            if name in RESULT_IN_FLOAT and "dtype" in arguments:
                halves = args[0].is_floating_point() and args[0].dtype != torch.float64
                if halves and len(args) <= arguments["dtype"] and options.get("dtype") is None:
                    options["dtype"] = torch.float32
                return operation(*args, **options)
            dtype = _dtype(name, (args, options))

            def other(leaf: object) -> object:
                eligible = isinstance(leaf, DeviceTensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
                return leaf.to(dtype) if eligible else leaf

            return operation(*tree_map(other, list(args)), **tree_map(other, options))

    return cast


def pretend_autocast() -> None:
    """Replace kernels by ones that cast, for the rest of the process's life."""
    for full in torch._C._dispatch_get_all_op_names():
        space, _, name = full.partition("::")
        if space != "aten" or not torch._C._dispatch_has_kernel_for_dispatch_key(full, KEY):
            continue
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")
        _library.impl(operation, _kernel(operation, packet), KEY, allow_override=True)
