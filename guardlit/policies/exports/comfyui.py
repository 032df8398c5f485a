"""LoRA files with the names and the alphas that ComfyUI's loader knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.weights.lora_files import COMFYUI_FILE
from guardlit.policies.weights.lora_update import some
from guardlit.policies.weights.lora_writing import Adapter
from guardlit.policies.weights.original_names import ORIGINAL_NAMES, Names

_BLOCK = "transformer_blocks.{i}"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_QWEN_IMAGE = (
    *(f"{_BLOCK}.attn.{name}" for name in _ATTENTION),
    *(f"{_BLOCK}.{stream}_{name}" for stream in ("img", "txt") for name in ("mlp.net.0.proj", "mlp.net.2", "mod.1")),
)


def _layers(names: Names) -> tuple[str, ...]:
    """The layers that a table of original names stands for, in diffusers' names."""
    return tuple(layer for layers in names.values() for layer in layers)


LAYERS: Mapping[str, tuple[str, ...]] = {
    "SD3Transformer2DModel": (*_layers(ORIGINAL_NAMES["SD3Transformer2DModel"]), "context_embedder"),
    "FluxTransformer2DModel": _layers(ORIGINAL_NAMES["FluxTransformer2DModel"]),
    "Flux2Transformer2DModel": tuple(
        name
        for name in _layers(ORIGINAL_NAMES["Flux2Transformer2DModel"])
        if not re.search("_modulation|time_guidance", name)
    ),
    "QwenImageTransformer2DModel": _QWEN_IMAGE,
}
"""Layers that ComfyUI finds by `transformer.` and their diffusers name, by the network's class; `{i}` is a number.

Read in the loader of ComfyUI: for SD3 and both generations of FLUX it maps each diffusers layer to the rows of the
original's fused weight, and exchanges the halves of the last modulation; its Qwen-Image has diffusers' names itself.
"""


def check_comfyui(kind: str) -> None:
    """Raise `GuardlitError` for a network whose names in ComfyUI are not known."""
    if kind not in LAYERS:
        known = ", ".join(name.removesuffix("Transformer2DModel") for name in LAYERS)
        raise GuardlitError(
            f"--to comfyui knows ComfyUI's layer names of {known}, not of {kind}; use --to diffusers, which other "
            "programs may convert"
        )


def comfyui_state(adapter: Adapter, kind: str) -> dict[str, Tensor]:
    """The tensors of a file that ComfyUI loads: A, B and alpha of each layer; ComfyUI applies alpha / rank.

    q, k and v stay apart although the original weights are fused: ComfyUI adds each to its rows, at its own rank. A
    fused update would need three times the rank.

    Args:
        adapter: trained.
        kind: class of its network in diffusers.

    Raises:
        GuardlitError: a layer that ComfyUI would leave out.
    """
    check_comfyui(kind)
    known = {re.escape(name).replace(r"\{i\}", r"\d+") for name in LAYERS[kind]}
    pattern = re.compile("|".join(sorted(known)))
    if unknown := [name for name in adapter.ranks if not pattern.fullmatch(name)]:
        raise GuardlitError(f"--to comfyui: ComfyUI knows no name of {some(unknown)}; use --to diffusers")
    alphas = {f"{name}.alpha": torch.tensor(alpha) for name, alpha in adapter.alphas().items()}
    return {f"transformer.{key}": tensor.contiguous() for key, tensor in {**adapter.weights, **alphas}.items()}


def save_comfyui(state: Mapping[str, Tensor], folder: Path) -> None:
    """Write `comfyui_lora.safetensors`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / COMFYUI_FILE, metadata={"format": "pt"})
