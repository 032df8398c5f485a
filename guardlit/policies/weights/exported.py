"""Exported weights in place of the trained ones: LoRA files and pipeline folders."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.folders.components import load_component, quiet
from guardlit.policies.weights.adapters import compute_as_base

ADAPTER = "exported"


@contextmanager
def exported_weights(transformer: Any, folder: Path, pipeline_class: str) -> Iterator[None]:
    """Use a folder's weights in place of the trained ones, within the context.

    Args:
        transformer: a policy's diffusers model, with or without adapters.
        folder: a LoRA, or a pipeline whose transformer replaces one that is trained in full.
        pipeline_class: the diffusers class that reads the folder.

    Raises:
        GuardlitError: the folder holds neither, or weights of another model.
    """
    trains_lora = bool(getattr(transformer, "peft_config", {}))
    if not (folder / "model_index.json").is_file():
        with _lora(transformer, folder, pipeline_class):
            yield
    elif trains_lora:
        raise GuardlitError(
            f"{folder} is a whole pipeline and this configuration trains a LoRA: set model.policy.lora to null, or "
            "name the folder as model.policy.model"
        )
    else:
        with _full(transformer, folder):
            yield


# a LoRA ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _lora(transformer: Any, folder: Path, pipeline_class: str) -> Iterator[None]:
    """The folder's adapter as the only active one."""
    file = _file(folder)
    tensors = _read(file)
    flags = {name: p.requires_grad for name, p in transformer.named_parameters()}
    own = list(getattr(transformer, "peft_config", {}))
    try:
        with _quietly():
            _load_lora(transformer, file, pipeline_class, tensors)
            transformer.set_adapter(ADAPTER)
        compute_as_base(transformer)
        yield
    finally:
        with _quietly():
            if ADAPTER in getattr(transformer, "peft_config", {}):
                transformer.delete_adapters(ADAPTER)
            transformer.set_adapter(own[0]) if own else transformer.unload_lora()
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(flags[name])


def _load_lora(transformer: Any, file: Path, pipeline_class: str, tensors: dict[str, Tensor]) -> None:
    """Add the adapter as the pipeline would, but in the precision of its file."""
    import diffusers

    model = type(transformer).__name__
    cls = getattr(diffusers, pipeline_class)
    needed = [name for name, p in inspect.signature(cls).parameters.items() if p.default is p.empty]
    pipeline = cls(**{**dict.fromkeys(needed), "transformer": transformer})
    try:
        # the file and not its tensors: its header holds alpha
        pipeline.load_lora_weights(file.parent, weight_name=file.name, local_files_only=True, adapter_name=ADAPTER)
    except Exception as error:  # key, shape and value errors of peft, diffusers and torch: a LoRA of another model
        reason = " ".join(str(error).split())[:200]
        raise GuardlitError(f"{file}: not a LoRA of this {model} ({reason})") from error
    loaded = {n.replace(f".{ADAPTER}.", "."): p for n, p in transformer.named_parameters() if f".{ADAPTER}." in n}
    ours = {key.removeprefix("transformer."): t for key, t in tensors.items() if ".lora_" in key}  # peft's own names
    lost = ours.keys() - loaded.keys() if len(ours) == len(tensors) else set()
    if lost or not loaded:
        raise GuardlitError(f"{file}: {len(lost) or 'all'} of its tensors have no place in this {model}")
    for name, parameter in loaded.items():  # diffusers rounds to the precision of the base, a policy does not
        parameter.data = ours.get(name, parameter.data).to(parameter.device).float()


def _file(folder: Path) -> Path:
    """The folder's only safetensors file, or the one with diffusers' name."""
    files = sorted(folder.glob("*.safetensors"))
    chosen = [file for file in files if file.name == "pytorch_lora_weights.safetensors"] or files
    if len(chosen) != 1:
        found = ", ".join(file.name for file in files) or "no safetensors file"
        raise GuardlitError(f"{folder} holds {found}; a LoRA is one file, pytorch_lora_weights.safetensors")
    return chosen[0]


def _read(file: Path) -> dict[str, Tensor]:
    """The LoRA's tensors, which are all of the transformer."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise GuardlitError(f"{file} cannot be read as a safetensors file ({error})") from error
    if others := [key for key in sorted(tensors) if key.startswith("text_encoder")]:
        raise GuardlitError(f"{file}: it also changes text encoders ('{others[0]}'), which a policy does not support")
    return tensors


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide diffusers' warnings about text encoders without a LoRA, and peft's about another adapter."""
    from diffusers.utils import logging

    quiet()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`|Adapter .* was active")
            yield
    finally:
        logging.set_verbosity(before)


# a pipeline folder ----------------------------------------------------------------------------------------------------


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
