"""Values that rooms exchange.

Shape legend, used in every docstring:
    B: rows of a micro-batch or batch      N: images of a round (prompts_per_round x images_per_prompt)
    T: denoising steps                     C, H, W: latent channels, height, width
    S: slots, the trained steps (S <= T)   D: latent elements of an image, C x H x W
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]
"""Embeddings of prompts: named tensors with leading dimension B."""


@dataclass(frozen=True)
class Prompt:
    """One prompt, and the metadata of its file (GenEval's `include`, a digit, ...)."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectory:
    """A batch of a rollout.

    Attributes:
        latents: the state *before* each recorded step, (B, S, C, H, W) float32.
        velocity: the policy's velocity at those states, (B, S, C, H, W) float32; None if it was not recorded.
        final: the clean latents, (B, C, H, W) float32.
    """

    latents: Tensor
    velocity: Tensor | None
    final: Tensor


@dataclass(frozen=True)
class Transition:
    """A micro-batch of transitions, which may mix timesteps.

    Attributes:
        latents: x_t, (B, C, H, W) float32.
        noise: the Gaussian noise of the step, (B, C, H, W) float32.
        old_velocity: the old policy's velocity, (B, C, H, W) float32; None if it was not stored.
        advantage: (B,) float32.
        sample_weight: 1 on average over an update; 0 for masked samples, (B,) float32.
        sigma: the timestep, in [0, 1], (B,) float32.
        gain: g of x_next = a x + g v + s noise, (B,) float64.
        std: s of the same step, (B,) float64.
        dt: sigma - sigma_next > 0, (B,) float64.
        step: index of the denoising step, (B,) int64.
        sample: index of the image in its round, (B,) int64.
        conditioning: the prompts' embeddings, leading dimension B.
        kl_weight: factor of the row's KL penalty, of its image and of its step, (B,) float32, or () for all.
    """

    latents: Tensor
    noise: Tensor
    old_velocity: Tensor | None
    advantage: Tensor
    sample_weight: Tensor
    sigma: Tensor
    gain: Tensor
    std: Tensor
    dt: Tensor
    step: Tensor
    sample: Tensor
    conditioning: Conditioning
    kl_weight: Tensor = field(default_factory=lambda: torch.ones(()))

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def blank(
        cls, rows: int, shape: Sequence[int], conditioning: Conditioning, device: torch.device | str
    ) -> Transition:
        """A micro-batch without content, to measure cost, of `rows` latents of this shape (C, H, W)."""
        images = {k: torch.zeros(rows, *shape, device=device) for k in ("latents", "noise", "old_velocity")}
        floats = {k: torch.ones(rows, device=device) for k in ("advantage", "sample_weight", "sigma", "kl_weight")}
        doubles = {k: torch.ones(rows, dtype=torch.float64, device=device) for k in ("gain", "std", "dt")}
        indices = {k: torch.zeros(rows, dtype=torch.int64, device=device) for k in ("step", "sample")}
        return cls(**images, **floats, **doubles, **indices, conditioning=conditioning)

    def to(self, device: torch.device | str) -> Transition:
        """The micro-batch on a device; Lightning calls this when it moves a batch."""
        moved: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: value.to(device) for name, value in moved.items() if isinstance(value, Tensor)}
        moved["conditioning"] = {name: tensor.to(device) for name, tensor in self.conditioning.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class RewardRequest:
    """Images to score.

    Attributes:
        images: (B, 3, height, width) uint8 on any device.
        prompts: B texts.
        metadata: B mappings, from the prompt file.
    """

    images: Tensor
    prompts: list[str]
    metadata: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Sequence[int]) -> RewardRequest:
        """The images at `rows`, in that order."""
        prompts, metadata = [self.prompts[row] for row in rows], [self.metadata[row] for row in rows]
        return RewardRequest(self.images[list(rows)], prompts, metadata)


@dataclass(frozen=True)
class RewardResult:
    """Scores of one request.

    Attributes:
        values: (B,) float32; NaN for a failed score.
        valid: (B,) bool; False for a failed score.
        details: further named scores, (B,) float32 each; a composite's terms.
        provenance: scorer, version, weights and options that determine the values.
        reason: of the first failure, in one line; empty without a failure or a known reason.
        features: an image network's embeddings, (B, F) on any device, which tell images apart; None without.
    """

    values: Tensor
    valid: Tensor
    details: Mapping[str, Tensor] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    features: Tensor | None = None

    @classmethod
    def from_values(cls, values: Tensor, **kwargs: Any) -> RewardResult:
        """Wrap (B,) scores; NaN and infinity become invalid."""
        values = values.detach().float().cpu()
        valid = torch.isfinite(values)
        return cls(torch.where(valid, values, torch.nan), valid, **kwargs)
