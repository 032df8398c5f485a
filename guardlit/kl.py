"""The penalty on the distance to the reference policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.ratios import mean_of_elements, velocity_difference
from guardlit.surrogate import at_least_float32

KLKind = Literal["exact", "velocity", "flow_grpo"]


@dataclass(frozen=True)
class KL:
    """A penalty on the distance to the base model.

    Attributes:
        weight: factor of the mean divergence per transition (Flow-GRPO's beta).
        kind: `exact`, `velocity` or `flow_grpo`; see `kl_divergence`.
    """

    weight: float
    kind: KLKind = "exact"

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise GuardlitError(f"kl.weight={self.weight} must be positive and finite; leave kl out for no penalty")


def kl_divergence(
    kind: KLKind, velocity: Tensor, reference_velocity: Tensor, gain: Tensor, std: Tensor, dt: Tensor
) -> Tensor:
    """Divergence of a step from the reference policy's, per sample; means over latent elements.

    Args:
        kind: `exact`, the Gaussian KL g^2 mean(dv^2) / (2 s^2); `velocity`, mean(dv^2); `flow_grpo`, the formula of
            the published Flow-GRPO code, whose denominator lacks dt: the exact KL times dt.
        velocity: the trained policy's, (B, C, H, W), with gradient.
        reference_velocity: (B, C, H, W).
        gain: g, (B,).
        std: s, (B,).
        dt: (B,).

    Returns:
        (B,) with gradient.
    """
    squared = mean_of_elements(velocity_difference(velocity, reference_velocity.detach()).square())
    exact = (gain.double() / std.double()).square() * squared / 2
    value = {"exact": exact, "velocity": squared, "flow_grpo": exact * dt.double()}[kind]
    return value.to(at_least_float32(velocity))
