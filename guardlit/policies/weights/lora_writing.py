"""Writes a trained LoRA so that every reader applies it at the right scale, whether it reads the header or not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from guardlit_callbacks.distributed import on_first
from torch import Tensor

from guardlit.policies.weights.lora import TRAINED, trained_layers
from guardlit.policies.weights.lora_files import OWN_KEY

T = TypeVar("T")


class Adapter(NamedTuple):
    """A trained LoRA as it was trained.

    Attributes:
        weights: A and B of each layer on the CPU, under peft's names without a prefix; see `on_first`.
        ranks: by layer.
        scales: alpha / r by layer, not in the weights.
    """

    weights: dict[str, Tensor]
    ranks: dict[str, int]
    scales: dict[str, float]

    def alphas(self) -> dict[str, float]:
        """Scale times rank by layer: alpha, unless the scale is that of rslora."""
        return {name: scale * self.ranks[name] for name, scale in self.scales.items()}


def trained_adapter(transformer: Any) -> Adapter:
    """The trained adapter of a network. Collective: every rank must call it."""
    from peft.utils import get_peft_model_state_dict

    state = on_first((k, v) for k, v in transformer.state_dict().items() if f".{TRAINED}." in k)
    weights = get_peft_model_state_dict(transformer, state_dict=state, adapter_name=TRAINED)
    layers = trained_layers(transformer)
    return Adapter(
        weights,
        {name: layer.r[TRAINED] for name, layer in layers.items()},
        {name: float(layer.scaling[TRAINED]) for name, layer in layers.items()},
    )


def adapter_state(transformer: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The trained adapter on the CPU under peft's names, and a header; see `on_first`.

    alpha / r is multiplied into B: for a power of two, as in all published settings, no number is rounded. So alpha
    equals the rank, as every reader assumes of a file without alpha. The header has what peft 0.18 and later know.
    """
    weights, ranks, scales = trained_adapter(transformer)
    for name, scale in scales.items():
        if (key := f"{name}.lora_B.weight") in weights:
            weights[key] = weights[key] * scale
    return weights, _header(ranks, scales)


def most_common(values: Iterable[T]) -> T:
    """The value that most layers have."""
    found = list(values)
    return max(set(found), key=found.count)


def _header(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, str]:
    common = most_common(ranks.values())
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
