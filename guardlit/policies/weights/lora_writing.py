"""Writes a trained LoRA so that every reader applies it at the right scale, whether it reads the header or not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guardlit_callbacks.distributed import on_first
from torch import Tensor

from guardlit.policies.weights.lora import TRAINED, trained_layers
from guardlit.policies.weights.lora_files import OWN_KEY


def adapter_state(transformer: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained adapter on the CPU under peft's names, and a header; see `on_first`.

    alpha / r is multiplied into B: for a power of two, as in all published settings, no number is rounded. So alpha
    equals the rank, as every reader assumes of a file without alpha. The header has what peft 0.18 and later know.
    """
    from peft.utils import get_peft_model_state_dict

    state = on_first((k, v) for k, v in transformer.state_dict().items() if f".{TRAINED}." in k)
    weights = get_peft_model_state_dict(transformer, state_dict=state, adapter_name=TRAINED)
    layers = trained_layers(transformer)
    scales = {name: float(layer.scaling[TRAINED]) for name, layer in layers.items()}
    for name, scale in scales.items():
        if (key := f"{name}.lora_B.weight") in weights:
            weights[key] = weights[key] * scale
    return weights, _header({name: layer.r[TRAINED] for name, layer in layers.items()}, scales)


def _header(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, str]:
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    pattern = {f"^{name}": rank for name, rank in sorted(ranks.items()) if rank != common}
    settings = {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(ranks),
    }
    named = {f"transformer.{key}": value for key, value in settings.items()}
    return {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(named, indent=2, sort_keys=True),
        OWN_KEY: json.dumps(
            {"trained_scales": scales if len(set(scales.values())) > 1 else next(iter(scales.values()))}
        ),
    }


def save(weights: Mapping[str, Tensor], header: Mapping[str, str], folder: Path, pipeline: Any) -> None:
    """Write `pytorch_lora_weights.safetensors`.

    Args:
        weights: as `adapter_state` gives them.
        header: of the file.
        folder: made if need be.
        pipeline: the diffusers class that loads it.
    """
    from safetensors.torch import save_file

    pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=weights,
        save_function=lambda tensors, path: save_file(tensors, path, metadata=dict(header)),
    )
