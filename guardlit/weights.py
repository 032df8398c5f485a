"""The weight of a denoising step's term in the loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

StepWeight = Literal["one", "std", "inverse_dt", "inverse_gain", "inverse_scale", "proportionate"]


def step_weight(weight: StepWeight, gain: Tensor, std: Tensor, dt: Tensor) -> Tensor:
    """The factor of each step's term, of g, s and dt (B,) -> (B,).

    Args:
        weight: `one`; `std` = s (TempFlow-GRPO, arXiv 2508.04324); `inverse_dt` = 1 / dt (GRPO-Guard, eq. 12);
            `inverse_gain` = 1 / |g|, which makes the gradient of RatioNorm equally large at every step of any sampler;
            `inverse_scale` = s / |g|, which does so for the baseline's log ratio (Flash-GRPO, arXiv 2605.15980);
            `proportionate` = dt s / |g|, which makes that gradient proportional to the step's share of the trajectory
            (PCPO, arXiv 2509.25774, its weights for flow models).
        gain: signed.
        std: above 0.
        dt: sigma - sigma_next, above 0.
    """
    match weight:
        case "one":
            return torch.ones_like(dt)
        case "std":
            return std
        case "inverse_dt":
            return 1 / dt
        case "inverse_gain":
            return 1 / gain.abs()
        case "inverse_scale":
            return std / gain.abs()
        case "proportionate":
            return dt * std / gain.abs()
