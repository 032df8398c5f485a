"""The flow-matching transformer of the tiny world, trained with its text encoders."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guardlit.tiny_world.build_text import (
    MAX_TOKENS,
    WIDTH,
    captions,
    clip_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
)

SHIFT = 3.0
PROMPT_DROPOUT = 0.1
WRONG_CAPTIONS = 0.27
"""Fraction of training images whose caption names a random digit: the base model's deliberate weakness."""
T5_LENGTHS, T5_WEIGHTS = (MAX_TOKENS, 32, 256), (0.95, 0.04, 0.01)
"""T5 token counts in training and their probabilities: mostly the cheap one, rarely up to diffusers' default."""


def untrained_pipeline(vae: Any) -> Any:
    """A `StableDiffusion3Pipeline` with this VAE and random weights elsewhere."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first, second, third = clip_tokenizer("<|endoftext|>"), clip_tokenizer("!"), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=4,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=clip_encoder(len(first), "quick_gelu"),
        tokenizer=first,
        text_encoder_2=clip_encoder(len(second), "gelu"),
        tokenizer_2=second,
        text_encoder_3=t5_encoder(len(third)),
        tokenizer_3=third,
    )


def train_flow(pipeline: Any, latents: Tensor, labels: Tensor, steps: int, batch: int = 64) -> float:
    """Train transformer and text encoders on latents (N, 16, 8, 8) and digits (N,); the final weights are their EMA.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    texts = captions()
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
    trained = nn.ModuleList([pipeline.transformer, *encoders]).train()
    decay = min(0.998, steps / (steps + 10))
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1.2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.2e-3, total_steps=steps, pct_start=0.1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(latents), (batch,))
        loss = _flow_loss(pipeline, [*texts, ""], latents[rows], _draw_captions(labels[rows], len(texts)))
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


def _draw_captions(labels: Tensor, count: int) -> Tensor:
    """Caption numbers (B,) for digits (B,): any wording, sometimes a wrong digit, sometimes none (number `count`)."""
    per_digit = count // 10
    wrong = torch.rand(len(labels)) < WRONG_CAPTIONS
    named = torch.where(wrong, torch.randint(10, labels.shape), labels)
    chosen = named * per_digit + torch.randint(per_digit, labels.shape)
    return torch.where(torch.rand(len(labels)) < PROMPT_DROPOUT, count, chosen)


def _flow_loss(pipeline: Any, texts: list[str], x0: Tensor, chosen: Tensor) -> Tensor:
    """Flow matching: the mean squared error of v = noise - x0, at t distributed as in the shifted schedule."""
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt=texts,
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=random.choices(T5_LENGTHS, T5_WEIGHTS)[0],
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
