"""Images of a tiny world's pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guardlit.sde import SDE

STEPS = 10


@torch.no_grad()
def draw(pipeline: Any, texts: list[str], sde: SDE, seed: int) -> Tensor:
    """Generate one image per text in ten steps without guidance: (B, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    unique = list(dict.fromkeys(texts))
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=unique,
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=pipeline.tokenizer.model_max_length,
    )
    rows = torch.tensor([unique.index(text) for text in texts])
    pipeline.scheduler.set_timesteps(STEPS)
    steps = sde.coefficients(pipeline.scheduler.sigmas)
    x = torch.randn(len(texts), 16, 8, 8, generator=generator)
    for t, a, g, s in zip(steps.sigmas.tolist(), steps.sample, steps.velocity, steps.std, strict=False):
        velocity = pipeline.transformer(
            hidden_states=x,
            timestep=torch.full((len(texts),), t * 1000),
            encoder_hidden_states=tokens[rows],
            pooled_projections=pooled[rows],
            return_dict=False,
        )[0]
        x = float(a) * x + float(g) * velocity + float(s) * torch.randn(x.shape, generator=generator)
    decoded: Tensor = pipeline.vae.decode(
        x / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    ).sample
    return to_uint8(decoded)


def to_uint8(images: Tensor) -> Tensor:
    """Decoded images in [-1, 1], of any shape, to levels 0 to 255."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
