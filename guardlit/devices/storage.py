"""Bytes of tensors, quantized ones included, whose data are several plain tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is a subclass that wraps other tensors, as torchao's are."""
    found: bool = is_traceable_wrapper_subclass(tensor)
    return found


def plain(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that hold a tensor's data: itself, or its codes, scales and tables."""
    if is_wrapper(tensor):
        names: Sequence[str] = tensor.__tensor_flatten__()[0]  # type: ignore[attr-defined]
        for name in names:
            yield from plain(getattr(tensor, name))
        return
    yield tensor.detach()
    yield from _quantization_tables(getattr(tensor, "quant_state", None))


def _quantization_tables(state: Any) -> Iterator[Tensor]:
    """Scales and tables that bitsandbytes stores apart from the codes."""
    while state is not None:
        yield from (t for t in (state.absmax, state.code, state.offset) if isinstance(t, Tensor))
        state = state.state2


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take in memory; storage that several of them share counts once."""
    parts = (part for tensor in tensors for part in plain(tensor))
    places = {(p.untyped_storage()._cdata, p.storage_offset(), p.numel()): p.numel() * p.element_size() for p in parts}
    return sum(places.values())


def size_of(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of tensors by their shapes.

    Args:
        tensors: each counts, shared storage or not.
        dtype: replaces that of floating-point tensors; None keeps it.
    """
    floats = [(t, dtype if dtype and t.is_floating_point() else t.dtype) for t in tensors]
    return sum(tensor.numel() * kind.itemsize for tensor, kind in floats)


def pinned_bytes(size: int) -> int:
    """Host memory that PyTorch takes for a pinned tensor of `size` bytes: the next power of two."""
    return 1 << max(size - 1, 0).bit_length()
