"""LoRA files as other trainers write them, and the weights that each must give: W + scale B A in float64."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from velocities import velocity

from guardlit.policies import DiffusersPolicy

RANK = 4


@dataclass
class Made:
    """A LoRA file in the making, and the layers' weights that it must give.

    Attributes:
        network: the transformer without adapters; its weights are not changed.
        tensors: of the file.
        weights: by layer, float64: what the independent merge gives.
        biases: the same for biases that it changes.
    """

    network: nn.Module
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, layer: str) -> Tensor:
        return self.network.get_submodule(layer).weight.detach().double()

    def pair(self, key: str, inputs: int, outputs: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
        """Random A, (rank, inputs), and B, (outputs, rank), that depend on the key alone."""
        generator = torch.Generator().manual_seed(sum(map(ord, key)))
        down, up = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
        return down / inputs**0.5, up * 0.3

    def put(self, key: str, down: Tensor, up: Tensor, names: str = "lora_A lora_B", **others: Tensor) -> None:
        """Add tensors to the file: A and B under their names, and others such as alpha."""
        first, second = names.split()
        self.tensors |= {f"{key}.{first}.weight": down, f"{key}.{second}.weight": up}
        self.tensors |= {f"{key}.{name}": tensor for name, tensor in others.items()}

    def expect(self, layer: str, down: Tensor, up: Tensor, scale: float) -> None:
        """The layer's weight is W + scale B A."""
        base = self.weight(layer)
        product = up.double().flatten(1) @ down.double().flatten(1)
        self.weights[layer] = base + scale * product.reshape(base.shape)

    def plain(
        self, layer: str, scale: float, *, prefix: str = "transformer.", rank: int = RANK, **options: Any
    ) -> None:
        """One layer under its diffusers name."""
        base = self.weight(layer).flatten(1)
        down, up = self.pair(layer, base.shape[1], len(base), rank)
        self.put(prefix + layer, down, up, **options)
        self.expect(layer, down, up, scale)

    def save(self, folder: Path, header: Mapping[str, str] | None = None, name: str = "") -> Path:
        """Write the file into a new folder; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.contiguous() for key, tensor in self.tensors.items()}
        save_file(tensors, folder / (name or "pytorch_lora_weights.safetensors"), dict(header or {}))
        return folder


def peft_folder(made: Made, folder: Path, **settings: Any) -> Path:
    """A folder as peft's `save_pretrained` writes it."""
    made.save(folder, {"format": "pt"}, "adapter_model.safetensors")
    base = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["to_q"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(base | settings), encoding="utf-8")
    return folder


def diffusers_header(**settings: Any) -> dict[str, str]:
    """The header that diffusers' `save_lora_weights` writes."""
    named = {f"transformer.{key}": value for key, value in settings.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(named)}


@contextmanager
def weights(network: nn.Module, made: Made) -> Iterator[None]:
    """The merged weights of `made`, in place of the network's own."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for changes, part in ((made.weights, "weight"), (made.biases, "bias")):
            for layer, values in changes.items():
                getattr(network.get_submodule(layer), part).copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(before[name])


def applied(policy: DiffusersPolicy) -> dict[str, Tensor]:
    """What every layer of a policy's network computes, read off its outputs: weights and biases by layer, float64.

    A layer's output for the unit vectors is its weight, whatever adapter it has.
    """
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, layer in policy.transformer.named_modules():
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            shape = base.weight.shape[1:]
            units = torch.eye(shape.numel()).reshape(-1, *shape)
            with torch.no_grad():
                zero = layer(torch.zeros(1, *shape)).double().flatten()
                found[f"{name}.weight"] = (layer(units).double().flatten(1) - zero).T.reshape(base.weight.shape)
                found[f"{name}.bias"] = zero
    return found


def check(policy: DiffusersPolicy, made: Made, place: Path) -> None:
    """The file changes every layer as the merge does, and no other layer; then the network is what it was."""
    names = [name for name, _ in policy.named_parameters()]
    base = velocity(policy)
    with weights(policy.transformer, made):
        expected = velocity(policy)
    with policy.exported(place):
        found, drawn = applied(policy), velocity(policy)
    assert made.weights.keys() <= {name.removesuffix(".weight") for name in found}
    for name, values in found.items():
        layer, _, part = name.rpartition(".")
        changes = made.weights if part == "weight" else made.biases
        module = policy.transformer.get_submodule(layer)
        own = getattr(module, part)
        own = torch.zeros(len(values), dtype=torch.float64) if own is None else own.detach().double()
        torch.testing.assert_close(values, changes.get(layer, own), rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, base, rtol=1e-3, atol=1e-3)
    assert torch.equal(velocity(policy), base)
    assert [name for name, _ in policy.named_parameters()] == names
