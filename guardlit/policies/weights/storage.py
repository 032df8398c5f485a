"""What a tensor is made of: quantized ones look like another, of more bytes, and are several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_wrapper(tensor: Tensor) -> bool:
    """Whether a tensor is a name for others, as torchao's are."""
    found: bool = is_traceable_wrapper_subclass(tensor)
    return found


def plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that are in memory for one: itself, or its codes, scales and tables."""
    if is_wrapper(tensor):
        names: Sequence[str] = tensor.__tensor_flatten__()[0]  # type: ignore[attr-defined]
        for name in names:
            yield from plain(getattr(tensor, name))
        return
    yield tensor.detach()
    yield from _beside(getattr(tensor, "quant_state", None))


def _beside(state: Any) -> Iterator[Tensor]:
    """Scales and tables that bitsandbytes keeps beside the codes."""
    while state is not None:
        yield from (t for t in (state.absmax, state.code, state.offset) if isinstance(t, Tensor))
        state = state.state2


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take; what several of them share counts once."""
    parts = (part for tensor in tensors for part in plain(tensor))
    places = {(p.untyped_storage()._cdata, p.storage_offset(), p.numel()): p.numel() * p.element_size() for p in parts}
    return sum(places.values())
