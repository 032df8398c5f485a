"""Policies with a base in 4 or 8 bits, and the libraries they need."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from guardlit.policies import LoRA, SD3Policy

NEEDS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}


def needs(kind: str) -> pytest.MarkDecorator:
    library = NEEDS.get(kind, kind)
    reason = f"{library} is not installed: pip install 'guardlit[quant]'"
    return pytest.mark.skipif(find_spec(library) is None, reason=reason)


KINDS = [pytest.param(kind, marks=needs(kind)) for kind in NEEDS]


def policy(folder: Path, kind: str | None, dtype: str = "fp32", cls: type = SD3Policy, **changes: object) -> SD3Policy:
    settings = {"resolution": 32, "lora": LoRA(rank=4, alpha=8.0), "max_sequence_length": 16, "cache": None} | changes
    return cls(str(folder), weights_dtype=dtype, quantization=kind, **settings)


def loaded(*args: object, **kwargs: object) -> SD3Policy:
    made = policy(*args, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made.load()
    made.encode(["a cat"])
    return made


def velocity(of: SD3Policy, rows: int = 2) -> torch.Tensor:
    latents = torch.randn(rows, *of.latent_shape, generator=torch.Generator().manual_seed(1))
    return of.velocity(latents, torch.full((rows,), 0.5), of.conditioning(["a cat"] * rows), 1.0)


def perturb(of: SD3Policy) -> None:
    """Give the adapter an effect."""
    with torch.no_grad():
        for name, parameter in of.named_parameters():
            if ".lora_B.default" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
