"""The layers of a network that a LoRA can change, found by any of their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.policies.weights.original_names import ORIGINAL_NAMES

SWAPPED = "AdaLayerNormContinuous"
"""diffusers' class whose layer makes scale and shift; the original makes shift and scale."""


@dataclass(frozen=True)
class Place:
    """A layer, and which rows of the file's update belong to it.

    Attributes:
        name: of the layer in the network.
        inputs: shape of one row of its weight.
        outputs: number of rows.
        swapped: whether the two halves of its rows are in the other order in the file.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: int
    swapped: bool = False

    def rows(self, tensor: Tensor, start: int) -> Tensor:
        """The layer's rows of a tensor, which begin at `start`."""
        part = tensor[start : start + self.outputs]
        return torch.cat(part.chunk(2)[::-1]) if self.swapped else part


class Layers:
    """The linear and convolutional layers of a network, by diffusers' and by the original names.

    Dots and underscores count as equal in a name, since kohya's scripts write only underscores.

    Args:
        transformer: a diffusers model, with or without adapters.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._model = type(transformer).__name__.removeprefix("FSDP")
        layers = _base_layers(transformer)
        self._places: dict[str, tuple[Place, ...]] = {
            _flat(name): (_place(name, layer),) for name, layer in layers.items()
        }
        blocks = range(max(len(m) for m in transformer.children() if isinstance(m, nn.ModuleList)))
        for original, names in ORIGINAL_NAMES.get(self._model, {}).items():
            for i in blocks if "{i}" in original else range(1):
                targets = [name.format(i=i) for name in names]
                if all(target in layers for target in targets):
                    places = [_place(t, layers[t], _swapped(transformer, t)) for t in targets]
                    self._places.setdefault(_flat(original.format(i=i)), tuple(places))

    def find(self, name: str, key: str) -> tuple[Place, ...]:
        """The layers that an update changes, in the order of its rows.

        Args:
            name: of the module in the file, without prefix.
            key: of one of its tensors, for the message.

        Raises:
            GuardlitError: there is no such layer.
        """
        if found := self._places.get(_flat(name)):
            return found
        if match := re.match(r"(\w*?blocks)[._](\d+)[._]", name):
            known = {int(number) for place in self._places if (number := _block(place, match[1])) is not None}
            if known and int(match[2]) > max(known):
                raise GuardlitError(
                    f"'{key}' is for block {match[2]} of {match[1]}, and this {self._model} has {max(known) + 1}: a "
                    "LoRA of a deeper model"
                )
        raise GuardlitError(f"'{key}' has no place in this {self._model}")


def _base_layers(transformer: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    found: dict[str, Any] = {}
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            found[name] = module.get_base_layer()
        elif isinstance(module, nn.Linear | nn.Conv2d) and not re.search(r"\.(base_layer|lora_\w+)(\.|$)", name):
            found[name] = module
    return found


def _place(name: str, layer: Any, swapped: bool = False) -> Place:
    if isinstance(layer, nn.Conv2d):
        return Place(name, (layer.in_channels // layer.groups, *layer.kernel_size), layer.out_channels, swapped)
    return Place(name, (layer.in_features,), layer.out_features, swapped)


def _swapped(transformer: nn.Module, name: str) -> bool:
    return type(transformer.get_submodule(name.rpartition(".")[0])).__name__ == SWAPPED


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _block(flat: str, kind: str) -> str | None:
    match = re.match(rf"{kind}_(\d+)_", flat)
    return match and match[1]
