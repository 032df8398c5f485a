"""Log ratios of a denoising step between two policies, and the KL between them, from velocities.

With dv = v - v_old, a step x_next = a x + g v + s noise moves its mean by g dv, so that (means over the D latent
elements, as in all published code)

    log r     = -g^2 mean(dv^2) / (2 s^2) + g mean(dv noise) / s        eq. (7) of GRPO-Guard, arXiv 2510.22319
    log r_hat = g mean(dv noise)                                        eq. (8), RatioNorm
    KL        = g^2 mean(dv^2) / (2 s^2)                                of two Gaussians with the same s, exact
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LogRatio = Literal["raw", "mean_revised", "ratio_norm", "velocity"]
"""A form of the log ratio: `raw` (eq. 7), `mean_revised` (its bias taken out), `ratio_norm` (eq. 8), or `velocity`,
with g divided out, too, so that its gradient does not depend on the step."""


def mean_of_elements(x: Tensor) -> Tensor:
    """Mean over everything but the sample dimension, (B, ...) -> (B,)."""
    return x.flatten(1).mean(1)


def velocity_difference(velocity: Tensor, other: Tensor) -> Tensor:
    """The difference of two velocities (B, ...) in float64; raises `ValueError` when shapes differ.

    The terms of mean(dv noise) nearly cancel. In float64 they do so exactly, and B x D doubles are small compared with
    the network's activations.
    """
    if velocity.shape != other.shape or velocity.ndim < 2:
        raise ValueError(f"velocities need one shape (B, ...), found {tuple(velocity.shape)} and {tuple(other.shape)}")
    return velocity.double() - other.double()


@dataclass(frozen=True)
class Ratios:
    """What two policies differ by at B transitions.

    Attributes:
        along_noise: mean(dv noise), (B,) float64.
        kl: exact KL of the step between them, (B,) float64.
        gain: g of the step, signed, (B,) float64.
        std: s of the step, (B,) float64.
    """

    along_noise: Tensor
    kl: Tensor
    gain: Tensor
    std: Tensor

    @classmethod
    def between(cls, velocity: Tensor, old_velocity: Tensor, noise: Tensor, gain: Tensor, std: Tensor) -> Ratios:
        """Of velocities and noise (B, C, H, W), at steps with g and s (B,) float64.

        Raises:
            ValueError: velocities of different shapes.
        """
        delta = velocity_difference(velocity, old_velocity)
        kl = (gain / std).square() * mean_of_elements(delta.square()) / 2
        return cls(mean_of_elements(delta * noise.double()), kl, gain, std)

    def log_ratio(self, form: LogRatio) -> Tensor:
        """The log ratio in a form, (B,) float64."""
        match form:
            case "raw":
                return self.gain * self.along_noise / self.std - self.kl
            case "mean_revised":
                return self.gain * self.along_noise / self.std
            case "ratio_norm":
                return self.gain * self.along_noise
            case "velocity":
                return self.gain.sign() * self.along_noise


def on_policy_scale(form: LogRatio, gain: Tensor, std: Tensor) -> Tensor:
    """Size of a log ratio's gradient with respect to v at v = v_old, up to a constant, of g and s (B,) -> (B,)."""
    match form:
        case "raw" | "mean_revised":
            return gain.abs() / std
        case "ratio_norm":
            return gain.abs()
        case "velocity":
            return torch.ones_like(gain)
