"""Adapters merged into the weights of their layers, for forward passes without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from guardlit_callbacks.distributed import full_tensor, local, reshard
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guardlit.devices.dtypes import FLOATS
from guardlit.policies.weights.adapters import adapted_layers

STORAGE = (Tensor, DTensor)
"""Types of unquantized weights; quantized ones have types of their library, whatever dtype they report."""


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
    swaps: list[tuple[Any, nn.Parameter, Tensor]] = []
    torch.clear_autocast_cache()
    try:
        _merge(transformer, swaps)
        yield
    finally:
        _restore(transformer, swaps)
        torch.clear_autocast_cache()


@torch.inference_mode(False)  # validation merges too: weights must not become inference tensors
@torch.no_grad()
def _merge(transformer: nn.Module, swaps: list[tuple[Any, nn.Parameter, Tensor]]) -> None:
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
        before = local(weight).clone() if isinstance(weight, DTensor) else weight.data
        swaps.append((layer, weight, before))  # before the write: an interrupt between the two must not leave it merged
        _write(weight, total.to(weight.dtype))
        layer._disable_adapters = True


@torch.inference_mode(False)
@torch.no_grad()
def _restore(transformer: nn.Module, swaps: list[tuple[Any, nn.Parameter, Tensor]]) -> None:
    reshard(transformer)
    for layer, weight, before in swaps:
        _write(weight, before)
        layer._disable_adapters = False


def _write(weight: nn.Parameter, values: Tensor) -> None:
    """Assign values to a weight, or to this rank's shard of it."""
    if isinstance(weight, DTensor):
        local(weight).copy_(values)  # FSDP2 gathers from this memory
    else:
        weight.data = values
