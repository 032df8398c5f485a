"""Adapters merged into the weights of their layers, for forward passes without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from guardlit_callbacks.distributed import full_tensor, local, reshard
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guardlit.devices.dtypes import FLOATS
from guardlit.policies.weights.adapters import adapted_layers

STORAGE = (Tensor, DTensor)
"""Types of unquantized weights; quantized ones have types of their library, whatever dtype they report."""

_Swap = tuple[Any, nn.Parameter, Tensor]
"""A layer with a merged adapter, its weight, and what the weight was before."""
_swaps: WeakKeyDictionary[nn.Module, list[_Swap]] = WeakKeyDictionary()
"""Of each network within `merged`."""


def mergeable(transformer: nn.Module) -> bool:
    """Whether the network has adapters, and each of them can be added to its layer's weight.

    Quantized weights would have to be quantized again; DoRA and other variants are not sums.
    """
    layers = adapted_layers(transformer)
    return bool(layers) and all(_plain(layer) for layer in layers)


def _plain(layer: Any) -> bool:
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or layer.lora_variant or any(layer.lora_bias.values()):
        return False
    return type(base.weight.data) in STORAGE and base.weight.dtype in FLOATS


@contextmanager
def merged(transformer: nn.Module) -> Iterator[None]:
    """Add the active adapter to the weights and disable it, within the context.

    The sum is computed in float32 and rounded to the dtype of storage. A copy of the weights is kept and restored, bit
    for bit: layers with adapters are in memory twice. Adapters that are no sum with the weight (DoRA) stay active.

    Args:
        transformer: with at most one active adapter; it may be sharded.
    """
    swaps: list[_Swap] = []
    outer = _swaps.get(transformer, [])
    torch.clear_autocast_cache()
    try:
        _merge(transformer, swaps)
        _swaps[transformer] = outer + swaps
        yield
    finally:
        _swaps[transformer] = outer
        _restore(transformer, swaps)
        torch.clear_autocast_cache()


@contextmanager
def unmerged(transformer: nn.Module) -> Iterator[None]:
    """Undo `merged` within the context, for another weight set; without a merge it does nothing.

    The weights of an unsharded network are swapped without a copy.
    """
    swaps = _swaps.get(transformer)
    if not swaps:
        yield
        return
    sums = _weights(swaps)
    try:
        _restore(transformer, swaps)
        yield
    finally:
        _put_back(transformer, swaps, sums)


@torch.inference_mode(False)  # validation merges too: weights must not become inference tensors
@torch.no_grad()
def _merge(transformer: nn.Module, swaps: list[_Swap]) -> None:
    reshard(transformer)
    for layer in adapted_layers(transformer):
        adapters = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.disable_adapters or not adapters or not _plain(layer):
            continue
        weight = layer.get_base_layer().weight
        total = local(weight).float()
        for name in adapters:
            down, up = full_tensor(layer.lora_A[name].weight.detach()), local(layer.lora_B[name].weight)
            total = torch.addmm(total, up.float(), down.float(), alpha=layer.scaling[name])
        before = _values(weight)
        swaps.append((layer, weight, before))  # before the write: an interrupt between the two must not leave it merged
        _write(weight, total.to(weight.dtype))
        layer._disable_adapters = True


@torch.inference_mode(False)
@torch.no_grad()
def _restore(transformer: nn.Module, swaps: Sequence[_Swap]) -> None:
    reshard(transformer)
    for layer, weight, before in swaps:
        _write(weight, before)
        layer._disable_adapters = False


@torch.inference_mode(False)
def _weights(swaps: Sequence[_Swap]) -> list[Tensor]:
    return [_values(weight) for _, weight, _ in swaps]


@torch.inference_mode(False)
@torch.no_grad()
def _put_back(transformer: nn.Module, swaps: Sequence[_Swap], sums: Sequence[Tensor]) -> None:
    reshard(transformer)
    for (layer, weight, _), total in zip(swaps, sums, strict=True):
        _write(weight, total)
        layer._disable_adapters = True


def _values(weight: nn.Parameter) -> Tensor:
    """The values of a weight, or of this rank's shard of it, that `_write` does not change."""
    return local(weight).clone() if isinstance(weight, DTensor) else weight.data


def _write(weight: nn.Parameter, values: Tensor) -> None:
    """Assign values to a weight, or to this rank's shard of it."""
    if isinstance(weight, DTensor):
        local(weight).copy_(values)  # FSDP2 gathers from this memory
    else:
        weight.data = values
