"""What code costs that runs on the meta device: floating-point operations, and bytes alive at once."""

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

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_HALF = frozenset(
    {functional.linear, torch.conv2d, torch.conv3d, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__}
    | {torch.bmm, torch.addmm, torch.baddbmm, functional.scaled_dot_product_attention}
)
_FULL = frozenset({torch.layer_norm, torch.group_norm, torch.softmax, torch.pow, torch.Tensor.pow, torch.rsqrt})
"""What autocast runs in half precision and, on CUDA, in float32, of what transformers and VAEs call."""


@dataclass
class Cost:
    """Of a stretch of code.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention, 2 a multiply-add.
        peak: most bytes alive at once that were allocated within it.
    """

    flops: float = 0.0
    peak: int = 0


@contextmanager
def measured(half: torch.dtype | None = None, full_precision_norms: bool = False) -> Iterator[Cost]:
    """Measure what runs on the meta device inside the block.

    Attention counts as the fused kernel that CPU and GPU take: its scores are never kept, and are counted once in the
    forward and twice in the backward pass, as the arithmetic of utilisation has it. What a kernel allocates for itself
    alone is not seen.

    Args:
        half: the dtype of autocast; null for none. The meta device knows no autocast, so that what it would cast is
            cast here.
        full_precision_norms: whether autocast takes norms and softmax to float32: CUDA's does.
    """
    meter = _Meter()
    with meter, _Device(half, full_precision_norms):
        yield meter.cost


def backward(loss: Tensor) -> None:
    """`loss.backward()`, which in its public form takes the modes of `measured` off: no recomputation would be seen."""
    one = (torch.ones_like(loss),)
    _engine_run_backward((loss,), one, False, False, (), allow_unreachable=True, accumulate_grad=True)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))  # type: ignore[no-untyped-call]


def _attention_backward_flops(gradient: Tensor, *inputs: Any, **_: Any) -> int:
    return 2 * _attention_flops(*inputs[:3])


_FORMULAS = {**flop_registry, _FUSED: _attention_flops, _FUSED_BACKWARD: _attention_backward_flops}


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations, and follows every storage from the operation that makes it until nobody holds it any more.

    torch's own `FlopCounterMode` has the same formulas, but follows modules too, and so holds on to their outputs.
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
            self._meet(tensor, 0)  # made before the block: not its cost
        out = func(*args, **kwargs)
        if (formula := _FORMULAS.get(func.overloadpacket)) is not None:
            self.cost.flops += float(formula(*args, **kwargs, out_val=out))
        for tensor in _tensors(out):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        return out

    def _meet(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = weakref.ref(storage, self._forget(key, size))
        self._now += size
        self.cost.peak = max(self.cost.peak, self._now)

    def _forget(self, key: int, size: int) -> Callable[[object], None]:
        def forget(_: object) -> None:
            del self._known[key]
            self._now -= size

        return forget


class _Device(TorchFunctionMode):
    """Runs on the meta device what a real one would run: fused attention, and autocast."""

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
    if query.ndim != 4 or not (query.shape[-1] == key.shape[-1] == value.shape[-1]):  # which no fused kernel takes
        return functional.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    return _FUSED(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    """All float32 and half-precision tensors of a tree in another of these."""
    floats = (torch.float32, torch.float16, torch.bfloat16)
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.dtype in floats else x, tree)
