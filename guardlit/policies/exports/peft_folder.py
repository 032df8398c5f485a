"""LoRA folders that peft loads, with the rank and the alpha that were trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from guardlit.policies.weights.lora import TRAINED
from guardlit.policies.weights.lora_files import PEFT_FILE
from guardlit.policies.weights.lora_writing import Adapter, most_common


def save_peft(adapter: Adapter, transformer: Any, base: str | None, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, for `peft.PeftModel.from_pretrained`.

    A scale of rslora is written as the plain alpha that equals it.

    Args:
        adapter: trained.
        transformer: its network, whose adapter settings name the layers.
        base: hub id of the base model, if it has one.
        folder: made if need be.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    alphas = adapter.alphas()
    rank, alpha = most_common(adapter.ranks.values()), most_common(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=_number(alpha),
        target_modules=transformer.peft_config[TRAINED].target_modules,
        rank_pattern={_only(name): r for name, r in adapter.ranks.items() if r != rank},
        alpha_pattern={_only(name): _number(a) for name, a in alphas.items() if a != alpha},
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {f"base_model.model.{key}": tensor.contiguous() for key, tensor in adapter.weights.items()}
    save_file(tensors, folder / PEFT_FILE, metadata={"format": "pt"})


def _number(alpha: float) -> float:
    """An integer where it is one, as peft's own files have it."""
    return int(alpha) if alpha == int(alpha) else alpha


def _only(name: str) -> str:
    """The pattern of one layer: peft also tries a pattern on the ends of names."""
    return f"^{re.escape(name)}"
