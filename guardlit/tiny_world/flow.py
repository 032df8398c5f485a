"""The flow-matching transformer of a tiny world, trained with its text encoders."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guardlit.tiny_world.text import WIDTH, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer

SHIFT = 3.0
T5_WEIGHTS = (0.95, 0.04, 0.01)
"""Probabilities of T5 token counts in training: mostly `max_tokens`, rarely 32, or 256, which is diffusers' default."""

Captions = Callable[[Tensor], tuple[list[str], Tensor]]
"""Rows (B,) of the training images -> texts to encode, and the number of each row's text among them (B,)."""


@dataclass(frozen=True)
class FlowSize:
    """Size of the transformer: layers, width of an attention head (of four), and tokens of a caption with end marks."""

    layers: int
    head_width: int
    max_tokens: int


def untrained_pipeline(vae: Any, texts: Sequence[str], size: FlowSize) -> Any:
    """A `StableDiffusion3Pipeline` with this VAE, a token for each word of `texts`, and random weights elsewhere."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokens = size.max_tokens
    first, second = clip_tokenizer(texts, "<|endoftext|>", tokens), clip_tokenizer(texts, "!", tokens)
    third = t5_tokenizer(texts, tokens)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=size.layers,
        attention_head_dim=size.head_width,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=4 * size.head_width,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=clip_encoder(len(first), "quick_gelu", tokens),
        tokenizer=first,
        text_encoder_2=clip_encoder(len(second), "gelu", tokens),
        tokenizer_2=second,
        text_encoder_3=t5_encoder(len(third)),
        tokenizer_3=third,
    )


def train_flow(
    pipeline: Any, latents: Tensor, captions: Captions, steps: int, batch: int = 64, rate: float = 1.2e-3
) -> float:
    """Train transformer and text encoders; the final weights are their EMA.

    Args:
        pipeline: of `untrained_pipeline`.
        latents: (N, 16, 8, 8), normalized.
        captions: of the drawn rows.
        steps: of the optimizer.
        batch: images of a step.
        rate: the highest learning rate.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
    trained = nn.ModuleList([pipeline.transformer, *encoders]).train()
    decay = min(0.998, steps / (steps + 10))
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(latents), (batch,))
        loss = _flow_loss(pipeline, latents[rows], *captions(rows))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(trained)
        losses.append(loss.item())
    trained.load_state_dict(average.module.state_dict())
    trained.eval()
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


def _flow_loss(pipeline: Any, x0: Tensor, texts: list[str], chosen: Tensor) -> Tensor:
    """Flow matching: the mean squared error of v = noise - x0, at t distributed as in the shifted schedule."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=texts,
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=random.choices((pipeline.tokenizer.model_max_length, 32, 256), T5_WEIGHTS)[0],
    )
    u = torch.rand(len(x0))
    t = SHIFT * u / (1 + (SHIFT - 1) * u)
    noise = torch.randn_like(x0)
    mix = t[:, None, None, None]
    velocity = pipeline.transformer(
        hidden_states=(1 - mix) * x0 + mix * noise,
        timestep=t * 1000,
        encoder_hidden_states=tokens[chosen],
        pooled_projections=pooled[chosen],
        return_dict=False,
    )[0]
    return mse_loss(velocity, noise - x0)
