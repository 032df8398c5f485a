"""Where a LoRA's file is, and its tensors and settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from guardlit.errors import GuardlitError

FILE = "pytorch_lora_weights.safetensors"
"""diffusers' name of a LoRA file."""
PEFT_FILE, PEFT_SETTINGS = "adapter_model.safetensors", "adapter_config.json"
COMFYUI_FILE = "comfyui_lora.safetensors"
"""Our name of a LoRA file with ComfyUI's keys."""
OWN_KEY = "guardlit"
"""Key of our own entry in the header of a file."""
_NUMBERS = {"lora_alpha": "lora_alpha", "alpha": "lora_alpha", "r": "r", "rank": "r"}
"""Numbers in a header without JSON, and peft's names of them."""


def find_file(place: Path) -> Path:
    """The LoRA file that a path means: itself, or the one in a folder, or in the folder's `lora/`, as in flow_grpo.

    Raises:
        GuardlitError: no such file, or more than one.
    """
    if place.is_file() and place.suffix == ".safetensors":
        return place
    if not place.is_dir():
        raise GuardlitError(f"{place} is no LoRA: it must be a safetensors file, or a folder with one")
    files = sorted(place.glob("*.safetensors"))
    chosen = next(([file] for name in (FILE, PEFT_FILE) for file in files if file.name == name), files)
    if not chosen and (place / "lora").is_dir():
        return find_file(place / "lora")
    if len(chosen) != 1:
        found = ", ".join(file.name for file in files) or "no safetensors file"
        pickles = [file.name for file in sorted(place.iterdir()) if file.suffix in (".bin", ".pt", ".pth")]
        hint = f"; convert {pickles[0]}, a pickle, to safetensors first" if pickles and not files else ""
        raise GuardlitError(f"{place} holds {found}; a LoRA is one file, {FILE} or {PEFT_FILE}{hint}")
    return chosen[0]


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file on the CPU, and the texts of its header; raises `GuardlitError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            return {key: content.get_tensor(key) for key in content.keys()}, content.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise GuardlitError(f"{file} cannot be read as a safetensors file ({error})") from error


def read_settings(file: Path, header: dict[str, str]) -> dict[str, Any]:
    """A LoRA's settings under peft's names, from `adapter_config.json` or the header; empty if there are none.

    Args:
        file: of the tensors.
        header: of that file: diffusers' `lora_adapter_metadata`, other JSON with peft's names, or plain numbers.

    Raises:
        GuardlitError: two sources that disagree, or an entry that cannot be read.
    """
    sources = list(filter(None, [_peft_settings(file), *_in_json(header), _in_numbers(header)]))
    settings: dict[str, Any] = {}
    for source in sources:
        for key, value in source.items():
            if key in ("r", "lora_alpha") and settings.setdefault(key, value) != value:
                raise GuardlitError(f"its settings disagree: {key} is {settings[key]} and {value}")
            settings.setdefault(key, value)
    return settings


def trained_scales(header: dict[str, str], layers: Iterable[str]) -> dict[str, float]:
    """The alpha / r of each layer in the training of an own export, which multiplies it into B; 1 for other files."""
    scales = json.loads(header.get(OWN_KEY, "{}")).get("trained_scales", 1.0)
    return {name: scales[name] if isinstance(scales, dict) else scales for name in layers}


def _peft_settings(file: Path) -> dict[str, Any]:
    path = file.with_name(PEFT_SETTINGS)
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuardlitError(f"{PEFT_SETTINGS} cannot be read ({error})") from error
    if not isinstance(settings, dict):
        raise GuardlitError(f"{PEFT_SETTINGS} holds no settings")
    return settings


def _in_json(header: dict[str, str]) -> list[dict[str, Any]]:
    """Entries that are JSON and hold peft's settings, whatever their key."""
    found = []
    for key, text in header.items():
        try:
            entry = json.loads(text)
        except ValueError:
            if key == "lora_adapter_metadata":
                raise GuardlitError(f"the entry '{key}' of its header is no JSON") from None
            continue
        if isinstance(entry, dict) and any(name.split(".")[-1] in ("lora_alpha", "r") for name in entry):
            others = ("text_encoder.", "text_encoder_2.")
            found.append({k.removeprefix("transformer."): v for k, v in entry.items() if not k.startswith(others)})
    return found


def _in_numbers(header: dict[str, str]) -> dict[str, Any]:
    """Plain numbers of the header; a rank without an alpha says nothing."""
    found: dict[str, Any] = {}
    for key, name in _NUMBERS.items():
        if key in header and name not in found:
            try:
                found[name] = float(header[key])
            except ValueError:
                raise GuardlitError(f"the entry '{key}' of its header is '{header[key]}', not a number") from None
    found["use_rslora"] = header.get("use_rslora", "").lower() == "true"
    return found if "lora_alpha" in found else {}
