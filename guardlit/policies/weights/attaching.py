"""Adds adapters with given weights to a network, layer by layer, and removes them again."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guardlit.policies.weights.adapters import adapted_layers
from guardlit.policies.weights.lora_update import Update


def attach(transformer: Any, adapter: str, updates: Mapping[str, Update]) -> None:
    """Add an adapter that makes the updates, in float32 on the devices of their layers, and activate it.

    Args:
        transformer: a diffusers model.
        adapter: its name.
        updates: by layer; every layer gets its rank and scale.
    """
    from peft import LoraConfig

    first = next(iter(updates.values()))
    config = LoraConfig(
        r=first.rank,
        target_modules=f"(?:{_any_of(updates)})",  # a list would also match the ends of longer names
        rank_pattern={
            f"^(?:{_any_of(name for name, update in updates.items() if update.rank == rank)})": rank
            for rank in {update.rank for update in updates.values()} - {first.rank}
        },
        use_dora=first.magnitude is not None,
        lora_bias=any(update.bias is not None for update in updates.values()),
    )
    weightless = next(transformer.parameters()).is_meta
    with warnings.catch_warnings(), torch.device("meta" if weightless else "cpu"), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Already found a `peft_config`|`lora_bias=True`")
        transformer.add_adapter(config, adapter_name=adapter)
    for name, update in updates.items():
        _fill(transformer.get_submodule(name), adapter, update)


def _any_of(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, names))


def _fill(layer: Any, adapter: str, update: Update) -> None:
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    device = layer.get_base_layer().weight.device
    layer.scaling[adapter], layer.lora_alpha[adapter] = update.scale, update.alpha
    down.weight, up.weight = _parameter(update.down, device), _parameter(update.up, device)
    if up.bias is not None:
        up.bias = _parameter(torch.zeros(len(update.up)) if update.bias is None else update.bias, device)
    if update.magnitude is not None:
        layer.lora_magnitude_vector[adapter].weight = _parameter(update.magnitude, device)


def _parameter(values: Tensor, device: torch.device) -> nn.Parameter:
    return nn.Parameter(values.to(device, torch.float32, copy=True))


def detach(transformer: Any, adapter: str) -> None:
    """Remove an adapter; layers without another one are again what they were."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Adapter .* was active")
        transformer.delete_adapters(adapter)
    for layer in adapted_layers(transformer):
        layer.lora_variant.pop(adapter, None)  # peft 0.18 keeps DoRA's for the next adapter of this name
    if not getattr(transformer, "peft_config", {}):
        transformer.unload_lora()
        return
    empty = {id(layer) for layer in adapted_layers(transformer) if not layer.lora_A}
    for module in list(transformer.modules()):
        for name, child in module.named_children():
            if id(child) in empty:
                setattr(module, name, child.get_base_layer())
