"""Exported weights in place of the trained ones: LoRA files and pipeline folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardlit.errors import GuardlitError
from guardlit.policies.folders.components import load_component, quiet
from guardlit.policies.weights.adapters import activate, adapted_layers, compute_as_base, restored
from guardlit.policies.weights.attaching import attach, detach
from guardlit.policies.weights.lora_reading import read_lora
from guardlit.policies.weights.quantized import QuantizedLinear
from guardlit.policies.weights.sets import without_gradients

ADAPTER = "exported"


@contextmanager
def exported_weights(transformer: Any, place: Path) -> Iterator[None]:
    """Use exported weights in place of the trained ones, within the context.

    Args:
        transformer: a policy's diffusers model, with or without adapters.
        place: a LoRA, or the folder of a pipeline whose transformer replaces one that is trained in full.

    Raises:
        GuardlitError: the path holds neither, or weights of another model.
    """
    trains_lora = bool(getattr(transformer, "peft_config", {}))
    if not (place / "model_index.json").is_file():
        with _lora(transformer, place):
            yield
    elif trains_lora:
        raise GuardlitError(
            f"{place} is a whole pipeline and this configuration trains a LoRA: set model.policy.lora to null, or "
            "name the folder as model.policy.model"
        )
    else:
        with _full(transformer, place):
            yield


def has_exported_lora(transformer: Any) -> bool:
    """Whether an exported LoRA is in use, so that the network without its adapters is the base."""
    return ADAPTER in getattr(transformer, "peft_config", {})


@contextmanager
def without_adapters(transformer: Any) -> Iterator[None]:
    """Use the network without any adapter, within the context and without gradients."""
    layers = adapted_layers(transformer)
    with without_gradients(), restored(layers):
        activate(layers, None)
        yield


@contextmanager
def _lora(transformer: Any, place: Path) -> Iterator[None]:
    """The file's adapter as the only active one."""
    updates = read_lora(place, transformer)
    if any(u.magnitude is not None for u in updates.values()) and any(map(_quantized, transformer.modules())):
        raise GuardlitError(f"{place}: a DoRA needs a base that is not quantized; take quantization: null")
    flags = {name: p.requires_grad for name, p in transformer.named_parameters()}
    quiet()
    with restored(adapted_layers(transformer)):
        try:
            attach(transformer, ADAPTER, updates)
            del updates
            activate(adapted_layers(transformer), ADAPTER)
            compute_as_base(transformer)
            transformer.requires_grad_(False)
            yield
        finally:
            if has_exported_lora(transformer):
                detach(transformer, ADAPTER)
            for name, parameter in transformer.named_parameters():
                parameter.requires_grad_(flags[name])


def _quantized(module: object) -> bool:
    return isinstance(module, QuantizedLinear)


@contextmanager
def _full(transformer: Any, folder: Path) -> Iterator[None]:
    """The weights of a pipeline folder's transformer."""
    dtype = next(transformer.parameters()).dtype
    theirs = load_component(type(transformer), folder, "transformer", dtype=dtype).state_dict()
    if {name: t.shape for name, t in theirs.items()} != {name: t.shape for name, t in transformer.state_dict().items()}:
        raise GuardlitError(f"{folder}: its transformer has other layers than the one of this configuration")
    trained = {name: p.data for name, p in transformer.named_parameters()}
    try:
        for name, parameter in transformer.named_parameters():
            parameter.data = theirs[name].to(parameter.device)
        yield
    finally:
        for name, parameter in transformer.named_parameters():
            parameter.data = trained[name]
