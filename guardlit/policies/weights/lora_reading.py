"""Reads LoRA files of any trainer: each is understood completely, or refused in one line."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.weights.lora_files import find_file, read_file, read_settings, trained_scales
from guardlit.policies.weights.lora_keys import Parts, by_module
from guardlit.policies.weights.lora_layers import Layers, Place
from guardlit.policies.weights.lora_settings import Settings
from guardlit.policies.weights.lora_update import Update, some


def read_lora(place: Path, transformer: Any, unfold: bool = False) -> dict[str, Update]:
    """The update of every layer that a LoRA changes, under the layer's name in the network.

    Names of diffusers, peft, ComfyUI, kohya and XLabs are known, those of the original repository included.

    Args:
        place: a safetensors file, or a folder with one: `pytorch_lora_weights.safetensors`, or peft's
            `adapter_model.safetensors` with `adapter_config.json`.
        transformer: the diffusers model that it is for, with or without adapters.
        unfold: give an own export the scale that it was trained at; its product with B is the same.

    Raises:
        GuardlitError: a tensor that cannot be applied, or a setting that is not known; it names them.
    """
    file = find_file(place)
    tensors, header = read_file(file)
    try:
        settings = Settings(read_settings(file, header))
        updates = _updates(by_module(tensors), settings, Layers(transformer))
    except GuardlitError as error:
        raise GuardlitError(f"{file}: {error}") from error
    if unfold:
        scales = trained_scales(header, updates)
        updates = {n: replace(u, up=u.up / scales[n], scale=u.scale * scales[n]) for n, u in updates.items()}
    return updates


def _updates(modules: dict[str, Parts], settings: Settings, layers: Layers) -> dict[str, Update]:
    found: dict[str, Update] = {}
    for name, parts in modules.items():
        places = layers.find(name, parts.keys["down"])
        if settings.dora and "magnitude" not in parts.tensors:
            raise GuardlitError(f"its settings say use_dora, and {some([parts.keys['down']])} has no magnitude")
        rank = _rank(parts, places)
        scale = settings.scale(name, rank, parts.tensors.get("alpha"))
        start = 0
        for place in places:
            if place.name in found:
                raise GuardlitError(f"'{parts.keys['down']}' is a second update of layer {place.name}")
            found[place.name] = _update(parts, place, start, rank, scale)
            start += place.outputs
    return found


def _rank(parts: Parts, places: tuple[Place, ...]) -> int:
    """The rank of an update whose shapes fit its layers."""
    down = parts.tensors["down"]
    rank, inputs, outputs = len(down) if down.ndim else 0, places[0].inputs, sum(place.outputs for place in places)
    layer = " + ".join(place.name for place in places)
    expected = {"down": (rank, prod(inputs)), "up": (outputs, rank), "bias": (outputs,), "magnitude": (outputs,)}
    if not rank:
        raise GuardlitError(f"'{parts.keys['down']}' has rank 0")
    if down.ndim > 2 and down.shape[1:] != inputs and down.shape[2:].numel() != 1:
        raise _shape(parts, "down", layer, f"({rank}, {', '.join(map(str, inputs))})")
    for part, shape in expected.items():
        if part in parts.tensors and not _fits(parts.tensors[part], shape):
            raise _shape(parts, part, layer, str(shape))
    return rank


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    return tensor.ndim >= len(shape) and tensor.shape[0] == shape[0] and tensor.numel() == prod(shape)


def _shape(parts: Parts, part: str, layer: str, shape: str) -> GuardlitError:
    return GuardlitError(
        f"'{parts.keys[part]}' has shape {tuple(parts.tensors[part].shape)}, and layer {layer} takes {shape}"
    )


def _update(parts: Parts, place: Place, start: int, rank: int, scale: float) -> Update:
    tensors = {name: tensor.to(torch.float32) for name, tensor in parts.tensors.items() if name != "alpha"}
    rows = {name: place.rows(tensor, start).contiguous() for name, tensor in tensors.items() if name != "down"}
    ones = (1,) * (len(place.inputs) - 1)
    return Update(
        down=tensors["down"].reshape(rank, *place.inputs),
        up=rows["up"].reshape(place.outputs, rank, *ones),
        scale=scale,
        bias=rows.get("bias"),
        magnitude=rows["magnitude"].flatten() if "magnitude" in rows else None,
    )
