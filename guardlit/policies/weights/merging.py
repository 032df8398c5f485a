"""An adapter's update added to the weights of the layers that it is on, for as long as nothing is learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from guardlit_callbacks.distributed.sharded import full_tensor, local, reshard
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guardlit.policies.weights.adapters import adapted_layers

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
STORAGE = (Tensor, DTensor)
"""Types of weights that hold plain numbers; those of quantizers are others, whatever dtype they claim."""


def mergeable(transformer: nn.Module) -> bool:
    """Whether the network has adapters, and each of them can be added to its layer's weight.

    Quantized weights cannot take an update without being quantized anew; DoRA and the like are no sum.
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
    """The active adapter in the weights, and no adapter beside them, for as long as the context lasts.

    The sum is made in float32 and rounded to the precision of storage. What the weights were is put back and not
    computed: they are the same bit for bit afterwards. Beside them the layers with adapters are in memory twice.

    Args:
        transformer: with adapters, of which one or none acts; it may be sharded.
    """
    swaps: list[tuple[Any, nn.Parameter, Tensor]] = []
    torch.clear_autocast_cache()
    try:
        _put_in(transformer, swaps)
        yield
    finally:
        _take_out(transformer, swaps)
        torch.clear_autocast_cache()


@torch.inference_mode(False)  # validation may be what merges: weights must not become tensors of its mode
@torch.no_grad()
def _put_in(transformer: nn.Module, swaps: list[tuple[Any, nn.Parameter, Tensor]]) -> None:
    reshard(transformer)
    for layer in adapted_layers(transformer):
        adapters = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.disable_adapters or not adapters:
            continue
        weight = layer.get_base_layer().weight
        total = local(weight).float()
        for name in adapters:
            down, up = full_tensor(layer.lora_A[name].weight.detach()), local(layer.lora_B[name].weight)
            total = torch.addmm(total, up.float(), down.float(), alpha=layer.scaling[name])
        before = local(weight).clone() if isinstance(weight, DTensor) else weight.data
        swaps.append((layer, weight, before))  # first, or an interrupt between the two would leave it merged
        _write(weight, total.to(weight.dtype))
        layer._disable_adapters = True


@torch.inference_mode(False)
@torch.no_grad()
def _take_out(transformer: nn.Module, swaps: list[tuple[Any, nn.Parameter, Tensor]]) -> None:
    reshard(transformer)
    for layer, weight, before in swaps:
        _write(weight, before)
        layer._disable_adapters = False


def _write(weight: nn.Parameter, values: Tensor) -> None:
    """Give a weight other values; of a sharded one, this process's part."""
    if isinstance(weight, DTensor):
        local(weight).copy_(values)  # FSDP2 gathers from this memory
    else:
        weight.data = values
