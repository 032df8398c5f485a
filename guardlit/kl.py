"""The penalty on the distance to the reference policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.gate import UncertaintyGate
from guardlit.ratios import mean_of_elements, velocity_difference
from guardlit.surrogate import at_least_float32

KLKind = Literal["exact", "velocity", "flow_grpo", "wasserstein"]


@dataclass(frozen=True)
class KL:
    """A penalty on the distance to the reference: weight x mean over transitions of w_image x w_step x divergence.

    The mean is over all transitions of an update, those of factor 0 included: a gate or a schedule takes the penalty
    away from some transitions, and leaves its strength on the others as it is.

    Attributes:
        weight: factor of the mean divergence per transition (Flow-GRPO's beta).
        kind: `exact`, `velocity`, `flow_grpo` or `wasserstein`; see `kl_divergence`.
        step_weights: w_step of each denoising step from the noisy end; the last one is that of all later steps. `[1, 1,
            1, 0]` penalizes the first three, which decide about the diversity of images (DiverseGRPO, arXiv
            2512.21514). null is 1 everywhere.
        gate: gives each image w_image 1 or 0; null is 1 everywhere.
        renew_every: rounds after which the reference becomes the current policy, at the start of the next one (GARDO,
            arXiv 2512.24138); null keeps the base model.
        renew_above: the same where the mean divergence of the round before, in the unit of `kind` and without w_image
            and w_step, is above this; null does not look at it.
    """

    weight: float
    kind: KLKind = "exact"
    step_weights: tuple[float, ...] | None = None
    gate: UncertaintyGate | None = None
    renew_every: int | None = None
    renew_above: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise GuardlitError(f"kl.weight={self.weight} must be positive and finite; leave kl out for no penalty")
        weights = self.step_weights
        if weights is not None and not (weights and all(0 <= w < math.inf for w in weights)):
            raise GuardlitError(
                f"kl.step_weights={list(weights)} must be one number or more, each finite and at least 0; null is 1 "
                "for every step"
            )
        if self.renew_every is not None and self.renew_every < 1:
            raise GuardlitError(f"kl.renew_every={self.renew_every} must be at least 1 round; null keeps the reference")
        if self.renew_above is not None and not 0 < self.renew_above < math.inf:
            raise GuardlitError(f"kl.renew_above={self.renew_above} must be positive and finite; null is no limit")

    @property
    def renews(self) -> bool:
        """Whether the reference may be renewed."""
        return self.renew_every is not None or self.renew_above is not None

    def schedule(self, steps: int) -> Tensor:
        """w_step of T denoising steps, (T,) float32."""
        given = self.step_weights or (1.0,)
        return torch.tensor([given[min(step, len(given) - 1)] for step in range(steps)])


def kl_divergence(
    kind: KLKind, velocity: Tensor, reference_velocity: Tensor, gain: Tensor, std: Tensor, dt: Tensor
) -> Tensor:
    """Divergence of a step from the reference policy's, per sample; means over latent elements.

    Args:
        kind: `exact`, the Gaussian KL g^2 mean(dv^2) / (2 s^2); `velocity`, mean(dv^2); `flow_grpo`, the formula of
            the published Flow-GRPO code, whose denominator lacks dt: the exact KL times dt; `wasserstein`, g^2
            mean(dv^2): the squared 2-Wasserstein distance, since both Gaussians have the same variance (DiverseGRPO).
        velocity: the trained policy's, (B, C, H, W), with gradient.
        reference_velocity: (B, C, H, W).
        gain: g, (B,).
        std: s, (B,).
        dt: (B,).

    Returns:
        (B,) with gradient.
    """
    squared = mean_of_elements(velocity_difference(velocity, reference_velocity.detach()).square())
    if kind == "velocity":
        value = squared
    elif kind == "wasserstein":
        value = gain.double().square() * squared
    else:
        exact = (gain.double() / std.double()).square() * squared / 2
        value = exact * dt.double() if kind == "flow_grpo" else exact
    return value.to(at_least_float32(velocity))
