"""A LoRA file's tensors by module: which key is which part, and what no LoRA holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.weights.lora_update import some

_PREFIXES = re.compile(
    r"^(?:transformer\.|base_model\.model\.|diffusion_model\.|model\.|module\.|lora_unet_|lora_transformer_|lycoris_)+"
)
"""In front of a module's name: diffusers, peft, ComfyUI, torch's DDP, kohya."""
_TEXT = re.compile(r"^(?:base_model\.model\.)?(?:text_encoder|text_model|conditioner|lora_te)")
_NAMED = r"(?:\.\w+)?"  # peft's name of the adapter, in a state dict that was saved as it is
_PARTS = {
    "down": re.compile(rf"(.+?)\.(?:lora_A{_NAMED}|lora_down|lora\.down|lora_linear_layer\.down|down)\.weight"),
    "up": re.compile(rf"(.+?)\.(?:lora_B{_NAMED}|lora_up|lora\.up|lora_linear_layer\.up|up)\.weight"),
    "bias": re.compile(rf"(.+?)\.(?:lora_B{_NAMED}|lora_up)\.bias"),
    "alpha": re.compile(r"(.+?)\.(?:lora_)?alpha"),
    "magnitude": re.compile(rf"(.+?)\.lora_magnitude_vector{_NAMED}"),
}
_OTHER_KINDS = {
    "lokr_": "a LoKr",
    "hada_": "a LoHa",
    "oft_": "an OFT",
    "vera_": "a VeRA",
    "lora_mid": "a LoCon with a core tensor",
    "dora_scale": "a DoRA in LyCORIS's form, whose norms readers define differently",
    "lora_embedding": "a LoRA of an embedding",
    "diff": "differences of complete tensors",
    "scale": "norm weights of a control LoRA",
}


@dataclass
class Parts:
    """The tensors of one module's update, and their keys in the file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, Parts]:
    """The parts of every module's update, under the module's name in the file without prefixes.

    Raises:
        GuardlitError: tensors of another kind, of text encoders, without a counterpart, or not finite.
    """
    if not tensors:
        raise GuardlitError("it holds no tensors")
    if texts := [key for key in tensors if _TEXT.match(key)]:
        raise GuardlitError(
            f"it also changes text encoders ({some(texts)}), which a policy does not support; remove these tensors "
            "from the file to use it without them"
        )
    modules: dict[str, Parts] = {}
    unknown = []
    for key, tensor in tensors.items():
        if (found := _part(key)) is None:
            unknown.append(key)
            continue
        name, part = found
        parts = modules.setdefault(name, Parts())
        if part in parts.keys:
            raise GuardlitError(f"'{parts.keys[part]}' and '{key}' are two tensors for one layer")
        parts.tensors[part], parts.keys[part] = tensor, key
    if unknown:
        raise _unknown(unknown)
    _check_complete(modules)
    _check_finite(tensors)
    return modules


def _part(key: str) -> tuple[str, str] | None:
    """The module of a key, and which part of its update the tensor is."""
    for part, pattern in _PARTS.items():
        if match := pattern.fullmatch(key):
            return _PREFIXES.sub("", match[1]), part
    return None


def _unknown(keys: Iterable[str]) -> GuardlitError:
    keys = list(keys)
    for sign, kind in _OTHER_KINDS.items():
        if found := [key for key in keys if any(part.startswith(sign) for part in key.split(".")[-2:])]:
            return GuardlitError(f"it is or holds {kind} ({some(found)}), which is not supported")
    return GuardlitError(f"{some(keys)}: not a tensor that a LoRA should contain (lora_A, lora_B, alpha, ...)")


def _check_complete(modules: Mapping[str, Parts]) -> None:
    halves = [parts for parts in modules.values() if not {"down", "up"} <= parts.keys.keys()]
    if halves:
        keys = [next(iter(parts.keys.values())) for parts in halves]
        raise GuardlitError(f"{some(keys)}: one of lora_A and lora_B is missing for this layer")
    plain = [parts.keys["down"] for parts in modules.values() if "magnitude" not in parts.keys]
    if plain and len(plain) < len(modules):
        raise GuardlitError(f"a DoRA without lora_magnitude_vector for {some(plain)}")
    if both := [parts.keys["bias"] for parts in modules.values() if {"bias", "magnitude"} <= parts.keys.keys()]:
        raise GuardlitError(f"a DoRA with biases ({some(both)}) is not supported")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    if others := [key for key, tensor in tensors.items() if not _number(tensor)]:
        raise GuardlitError(f"{some(others)}: not floating-point numbers")
    if wrong := [key for key, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]:
        raise GuardlitError(f"{some(wrong)}: NaN or infinite numbers")


def _number(tensor: Tensor) -> bool:
    """Whether it can be a weight, or an alpha, which some trainers save as an integer."""
    return tensor.dtype.is_floating_point or (tensor.numel() == 1 and tensor.dtype in (torch.int32, torch.int64))
