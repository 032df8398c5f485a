"""The cost of code on the meta device: floating-point operations and peak memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from guardlit.devices.dtypes import FLOATS

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_HALF = frozenset(
    {functional.linear, torch.conv2d, torch.conv3d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
    | {torch.bmm, torch.addmm, torch.baddbmm, functional.scaled_dot_product_attention}
)
_FULL = frozenset({torch.layer_norm, torch.group_norm, torch.softmax, torch.pow, torch.Tensor.pow, torch.rsqrt})
"""Functions that autocast runs in half precision, and on CUDA in float32, among those of transformers and VAEs."""


@dataclass
class Cost:
    """Cost of a block of code.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention, 2 a multiply-add.
        peak: largest number of bytes in use at once, of those allocated in the block.
    """

    flops: float = 0.0
    peak: int = 0


@contextmanager
def measured(half: torch.dtype | None = None, full_precision_norms: bool = False) -> Iterator[Cost]:
    """Measure the code of the block, on the meta device or a real one.

    One pass gives operations and memory. Lightning's `measure_flops` counts equal operations, and no memory. Attention
    counts as the fused kernel of CPU and GPU: its scores are never stored; they count once in the forward and twice in
    the backward pass, as is usual for model FLOPs utilization. Temporary memory inside kernels is not counted.

    Args:
        half: the dtype of autocast; None for none. The meta device has no autocast, so its casts are made here.
        full_precision_norms: whether autocast computes norms and softmax in float32, as CUDA's does.
    """
    meter = _Meter()
    with meter, _Device(half, full_precision_norms):
        yield meter.cost


def backward(loss: Tensor) -> None:
    """`loss.backward()`; the public form disables the modes of `measured`, which then would miss recomputed blocks."""
    one = (torch.ones_like(loss),)
    _engine_run_backward((loss,), one, False, False, (), allow_unreachable=True, accumulate_grad=True)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward_flops(gradient: Tensor, *inputs: Any, **_: Any) -> int:
    return 2 * _attention_flops(*inputs[:3])


_FORMULAS = {**flop_registry, _FUSED: _attention_flops, _FUSED_BACKWARD: _attention_backward_flops}


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums operations, and tracks every storage from its allocation to its release.

    torch's own `FlopCounterMode` has the same formulas, but tracks modules too, and so keeps their outputs alive.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cost = Cost()
        self._known: dict[int, Any] = {}
        self._now = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._track(tensor, 0)  # allocated before the block: not its cost
        out = func(*args, **kwargs)
        if (formula := _FORMULAS.get(func.overloadpacket)) is not None:
            self.cost.flops += float(formula(*args, **kwargs, out_val=out))
        for tensor in _tensors(out):
            self._track(tensor, tensor.untyped_storage().nbytes())
        return out

    def _track(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, self._release(key, size))
        self._now += size
        self.cost.peak = max(self.cost.peak, self._now)

    def _release(self, key: int, size: int) -> Callable[[object], None]:
        def release(_: object) -> None:
            del self._known[key]
            self._now -= size

        return release


class _Device(TorchFunctionMode):
    """Runs on the meta device what a real device would run: fused attention, and autocast."""

    def __init__(self, half: torch.dtype | None, full_precision_norms: bool) -> None:
        super().__init__()
        self._half, self._norms = half, full_precision_norms

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._half is not None and func in _HALF:
            args, kwargs = _cast((args, kwargs), self._half)
        elif self._half is not None and self._norms and func in _FULL:
            args, kwargs = _cast((args, kwargs), torch.float32)
        if func is functional.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        return func(*args, **kwargs)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and not attn_mask.is_floating_point():
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    if query.ndim != 4 or not (query.shape[-1] == key.shape[-1] == value.shape[-1]):  # no fused kernel supports it
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return _FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """A tree with its float32 and half-precision tensors cast to a dtype."""
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.dtype in FLOATS else x, tree)
