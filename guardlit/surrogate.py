"""The surrogate objective: a log ratio x a step weight x a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guardlit.bounds import Bound, BoundKind, ClipUnit
from guardlit.bounds import ClipRange as ClipRange
from guardlit.ratios import LogRatio, Ratios, on_policy_scale
from guardlit.weights import StepWeight, step_weight


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss and the ratios of a micro-batch.

    Attributes:
        loss: mean over the micro-batch, to be minimized, () with gradient.
        log_ratio: the log ratio of the objective, (B,) detached.
        clipped: whether the transition is out of bounds: its ratio lies outside the clip range, above or below, or its
            KL above the limit, (B,) bool.
        bounded: what the bound limits: the size of the log ratio, or the step's KL(old, new), (B,) detached.
        raw_log_ratio: log r of eq. (7), (B,) detached.
        norm_log_ratio: log r_hat of eq. (8), (B,) detached.
    """

    loss: Tensor
    log_ratio: Tensor
    clipped: Tensor
    bounded: Tensor
    raw_log_ratio: Tensor
    norm_log_ratio: Tensor


def at_least_float32(x: Tensor) -> torch.dtype:
    """The dtype of x, or float32 where that is less precise."""
    return torch.promote_types(x.dtype, torch.float32)


class Objective:
    """A log-ratio form x a step weight x a bound.

    Args:
        log_ratio: `raw` (eq. 7), `mean_revised` (its bias taken out), `ratio_norm` (eq. 8) or `velocity` (g divided out
            too); see `guardlit.ratios`.
        weight: of a step: `one`, `std`, `inverse_dt`, `inverse_gain`, `inverse_scale` or `proportionate`; see
            `guardlit.weights.step_weight`.
        clip_range: the ratio is clipped at 1 +- this, or at 1 - first and 1 + second of a pair; null clips nothing;
            `auto` clips nothing until `calibrate` is called, as a run does after its first off-policy update;
            `auto_per_step` finds one range for each denoising step. With `bound: kl` it is the limit of the KL.
        clip_unit: `mean`, the published unit, for ratios of mean log-probabilities; `sum`, the same number times the
            D latent elements, which survives a change of resolution (4e-6 at 512 px is 0.26).
        normalize_weight: divide the weights by their mean over the trained steps, which `bind` sets, so that they leave
            the size of the loss alone.
        bound: `ratio`, PPO's clip, or `kl`, Flow-DPPO's mask; see `guardlit.bounds.Bound`.
        surrogate: of the advantage: `ratio`, r A, or `log_ratio`, log r A, whose clip range is one of log r (PCPO).

    Raises:
        ValueError: a clip range that is not positive, or in unit `mean` not below 1, or a pair with `bound: kl`.
    """

    images_branch_once = False
    """Whether it needs images that draw noise at one step each, the same one in a group: `RandomWindow(length=1)`."""

    def __init__(
        self,
        log_ratio: LogRatio = "ratio_norm",
        weight: StepWeight = "inverse_dt",
        clip_range: ClipRange = 4e-6,
        clip_unit: ClipUnit = "mean",
        normalize_weight: bool = False,
        bound: BoundKind = "ratio",
        surrogate: Literal["ratio", "log_ratio"] = "ratio",
    ) -> None:
        self.form, self.weight, self.normalize_weight = log_ratio, weight, normalize_weight
        self._weight_scale = 1.0
        self.bound = Bound.of(bound, clip_range, clip_unit, of_log=surrogate == "log_ratio")

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """Lower and upper end, see `Bound`; None where nothing is clipped, or one range does not hold for all steps."""
        return self.bound.clip_range

    @property
    def clip_unit(self) -> ClipUnit:
        """`mean` or `sum`."""
        return self.bound.unit

    @property
    def auto(self) -> bool:
        """Whether the clip range is calibrated by the run."""
        return self.bound.auto

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
        step: Tensor | None = None,
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
            step: index of the denoising step, (B,) int64; needed for clip ranges per step.

        Returns:
            Loss and ratios, in the velocities' dtype, at least float32.

        Raises:
            ValueError: shapes that do not fit, or a missing `step`. (A step with std = 0 has no ratio and gives NaN:
                looking at the values here would make a GPU wait at every micro-batch.)
        """
        for name, scalar in {"advantage": advantage, "gain": gain, "std": std, "dt": dt}.items():
            if scalar.shape != velocity.shape[:1]:
                raise ValueError(f"{name} needs shape ({len(velocity)},), found {tuple(scalar.shape)}")
        gain, std, dt = gain.double(), std.double(), dt.double()
        ratios = Ratios.between(velocity, old_velocity.detach(), noise, gain, std)
        log_ratio, elements = ratios.log_ratio(self.form), velocity[0].numel()
        advantage = advantage.double()
        # r A = A + (r - 1) A: the small part is never added to 1
        surrogate = advantage + self.bound.surrogate(log_ratio, ratios.kl, advantage, elements, step)
        weight = self.step_weight(gain, std, dt)
        if sample_weight is not None:
            weight = weight * sample_weight.double()
        dtype, detached, kl = at_least_float32(velocity), log_ratio.detach(), ratios.kl.detach()
        return ObjectiveOutput(
            loss=-(weight * surrogate).mean().to(dtype),
            log_ratio=detached.to(dtype),
            clipped=self.bound.outside(detached, kl, elements, step),
            bounded=self.bound.size(detached, kl).to(dtype),
            raw_log_ratio=ratios.log_ratio("raw").detach().to(dtype),
            norm_log_ratio=ratios.log_ratio("ratio_norm").detach().to(dtype),
        )

    def log_bounds(self, elements: int) -> tuple[float, float]:
        """The clip range as bounds of the log ratio, for latents of that many elements."""
        return self.bound.log_bounds(elements)

    def calibrate(self, log_ratio: float, elements: int) -> None:
        """Clip at log ratios of that size and above, for latents of that many elements; raises `ValueError` at 0."""
        self.bound.calibrate(log_ratio, elements)

    def bind(self, gain: Tensor, std: Tensor, dt: Tensor) -> None:
        """Bind the objective to the trained steps, (S,) x 3, whose mean weight `normalize_weight` divides by."""
        if self.normalize_weight:
            self._weight_scale = 1 / float(step_weight(self.weight, gain, std, dt).mean())

    def step_weight(self, gain: Tensor, std: Tensor, dt: Tensor) -> Tensor:
        """The factor of each step's term, of g, s and dt (B,) -> (B,)."""
        return self._weight_scale * step_weight(self.weight, gain, std, dt)

    def gradient_scale(self, gain: Tensor, std: Tensor, dt: Tensor) -> Tensor:
        """Predicted size of the loss gradient with respect to v on-policy, up to a constant, (T,) x 3 -> (T,).

        The noise term of Table 2's last column: the log ratio's own scale (|g| / s, |g| with RatioNorm, 1 in velocity
        form) x the weight.
        """
        return on_policy_scale(self.form, gain, std) * self.step_weight(gain, std, dt)
