"""The clipped surrogate objective: a log ratio x a step weight x a clip.

The ratio is computed from velocities: with dv = v - v_old, a step x_next = a x + g v + s noise moves its mean by g dv,
so that (means over the D latent elements, as in all published code)

    log r     = -g^2 mean(dv^2) / (2 s^2) + g mean(dv noise) / s        eq. (7) of GRPO-Guard, arXiv 2510.22319
    log r_hat = g mean(dv noise)                                        eq. (8), RatioNorm

Clip ranges such as 4e-6 are 17 to 34 units in the last place of a float32 near 1: the ratio is therefore never
compared with 1 +- clip_range, but its logarithm with log1p(+- clip_range), and r - 1 is taken by expm1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LogRatio = Literal["raw", "mean_revised", "ratio_norm"]
StepWeight = Literal["one", "std", "inverse_dt", "inverse_gain"]
ClipRange = float | tuple[float, float] | Literal["auto"] | None


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss and the ratios of a micro-batch.

    Attributes:
        loss: mean over the micro-batch, to be minimized, () with gradient.
        log_ratio: the log ratio that is clipped, (B,) detached.
        clipped: whether the ratio lies outside the clip range, above or below, (B,) bool.
        raw_log_ratio: log r of eq. (7), (B,) detached.
        norm_log_ratio: log r_hat of eq. (8), (B,) detached.
    """

    loss: Tensor
    log_ratio: Tensor
    clipped: Tensor
    raw_log_ratio: Tensor
    norm_log_ratio: Tensor


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


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype of x, or float32 where that is less precise."""
    return torch.promote_types(x.dtype, torch.float32)


class Objective:
    """A log-ratio form x a step weight x a clip.

    Args:
        log_ratio: `raw` (eq. 7), `mean_revised` (its bias taken out) or `ratio_norm` (eq. 8).
        weight: of a step: `one`; `std` = s (TempFlow-GRPO); `inverse_dt` = 1 / dt (GRPO-Guard, eq. 12);
            `inverse_gain` = 1 / |g|, which makes the gradient of RatioNorm equally large at every step of any sampler.
        clip_range: the ratio is clipped at 1 +- this, or at 1 - first and 1 + second of a pair; null clips nothing;
            `auto` clips nothing until `calibrate` is called, as a run does after its first off-policy update.
        clip_unit: `mean`, the published unit, for ratios of mean log-probabilities; `sum`, the same number times the
            D latent elements, which survives a change of resolution (4e-6 at 512 px is 0.26).
        normalize_weight: divide the weights by their mean over the trained steps, which `bind` sets, so that they leave
            the size of the loss alone.

    Raises:
        ValueError: a clip range that is not positive, or in unit `mean` not below 1.
    """

    def __init__(
        self,
        log_ratio: LogRatio = "ratio_norm",
        weight: StepWeight = "inverse_dt",
        clip_range: ClipRange = 4e-6,
        clip_unit: Literal["mean", "sum"] = "mean",
        normalize_weight: bool = False,
    ) -> None:
        self.form, self.weight, self.normalize_weight = log_ratio, weight, normalize_weight
        self._weight_scale = 1.0
        self.auto = clip_range == "auto"
        self.clip_range: tuple[float, float] | None = None
        if clip_range is not None and clip_range != "auto":
            low, high = (clip_range, clip_range) if isinstance(clip_range, float | int) else clip_range
            self.clip_range = (low, high)
            if not (low > 0 and 0 < high < math.inf) or (clip_unit == "mean" and low >= 1):
                raise ValueError(
                    f"clip_range={clip_range} must be positive, and below 1 on its lower side in unit mean"
                )
        self.clip_unit = clip_unit

    def __call__(
        self,
        velocity: Tensor,
        old_velocity: Tensor,
        noise: Tensor,
        advantage: Tensor,
        gain: Tensor,
        std: Tensor,
        dt: Tensor,
        sample_weight: Tensor | None = None,
    ) -> ObjectiveOutput:
        """The loss of a micro-batch whose rows may stand at different timesteps.

        Args:
            velocity: the trained policy's, (B, C, H, W), with gradient.
            old_velocity: the sampling policy's at the same latents, (B, C, H, W).
            noise: drawn in the step, (B, C, H, W).
            advantage: (B,).
            gain: g of the step, signed, (B,).
            std: s of the step, > 0, (B,).
            dt: sigma - sigma_next, > 0, (B,).
            sample_weight: factor of each row's term, 1 by default, (B,).

        Returns:
            Loss and ratios, in the velocities' dtype, at least float32.

        Raises:
            ValueError: shapes that do not fit. (A step with std = 0 has no ratio and gives NaN: looking at the values
                here would make a GPU wait at every micro-batch.)
        """
        for name, scalar in {"advantage": advantage, "gain": gain, "std": std, "dt": dt}.items():
            if scalar.shape != velocity.shape[:1]:
                raise ValueError(f"{name} needs shape ({len(velocity)},), found {tuple(scalar.shape)}")
        gain, std, dt = gain.double(), std.double(), dt.double()
        delta = velocity_difference(velocity, old_velocity.detach())
        raw, normalized = self._log_ratios(delta, noise, gain, std)
        log_ratio = {"raw": raw, "mean_revised": normalized / std, "ratio_norm": normalized}[self.form]
        dtype = at_least_float32(velocity)
        low, high = self.log_bounds(delta[0].numel())
        gradient_ratio = torch.expm1(log_ratio)
        bounded_ratio = torch.expm1(log_ratio.clamp(low, high))
        advantage = advantage.double()
        # min(r A, clip(r) A) = A + min((r - 1) A, (clip(r) - 1) A): the small part is never added to 1
        surrogate = advantage + torch.minimum(gradient_ratio * advantage, bounded_ratio * advantage)
        weight = self.step_weight(gain, std, dt)
        if sample_weight is not None:
            weight = weight * sample_weight.double()
        loss = -(weight * surrogate).mean()
        detached = log_ratio.detach()
        return ObjectiveOutput(
            loss=loss.to(dtype),
            log_ratio=detached.to(dtype),
            clipped=(detached < low) | (detached > high),
            raw_log_ratio=raw.detach().to(dtype),
            norm_log_ratio=normalized.detach().to(dtype),
        )

    @staticmethod
    def _log_ratios(delta: Tensor, noise: Tensor, gain: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. (7) and eq. (8), (B,) float64, of velocity differences and noise (B, C, H, W)."""
        normalized = gain * mean_of_elements(delta * noise.double())
        raw = normalized / std - (gain / std).square() * mean_of_elements(delta.square()) / 2
        return raw, normalized

    def log_bounds(self, elements: int) -> tuple[float, float]:
        """The clip range as bounds of the log ratio, for latents of that many elements."""
        if self.clip_range is None:
            return -math.inf, math.inf
        scale = 1 / elements if self.clip_unit == "sum" else 1.0
        low, high = (bound * scale for bound in self.clip_range)
        # a range of summed log-likelihoods may reach 1 - low <= 0
        return (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)

    def calibrate(self, log_ratio: float, elements: int) -> None:
        """Clip at log ratios of that size and above, for latents of that many elements; raises `ValueError` at 0."""
        if not 0 < log_ratio < math.inf:
            raise ValueError(f"a clip range must be positive and finite, found log ratio {log_ratio}")
        unit = elements if self.clip_unit == "sum" else 1
        self.clip_range = (-math.expm1(-log_ratio) * unit, math.expm1(log_ratio) * unit)

    def bind(self, gain: Tensor, std: Tensor, dt: Tensor) -> None:
        """Bind the objective to the trained steps, (S,) x 3, whose mean weight `normalize_weight` divides by."""
        if self.normalize_weight:
            self._weight_scale = 1 / float(self._weight(gain, std, dt).mean())

    def step_weight(self, gain: Tensor, std: Tensor, dt: Tensor) -> Tensor:
        """The factor of each step's term, of g, s and dt (B,) -> (B,)."""
        return self._weight_scale * self._weight(gain, std, dt)

    def _weight(self, gain: Tensor, std: Tensor, dt: Tensor) -> Tensor:
        match self.weight:
            case "one":
                return torch.ones_like(dt)
            case "std":
                return std
            case "inverse_dt":
                return 1 / dt
            case "inverse_gain":
                return 1 / gain.abs()

    def gradient_scale(self, gain: Tensor, std: Tensor, dt: Tensor) -> Tensor:
        """Predicted size of the loss gradient with respect to v on-policy, up to a constant, (T,) x 3 -> (T,).

        The noise term of Table 2's last column: weight x |g| / s, or weight x |g| with RatioNorm.
        """
        scale = gain.abs() if self.form == "ratio_norm" else gain.abs() / std
        return scale * self.step_weight(gain, std, dt)
