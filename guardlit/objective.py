"""Published objectives, and guardlit's, each a preset of `Objective`.

The rows of Table 2 of GRPO-Guard (arXiv 2510.22319) come first, then what followed it. docs/objectives.md has the
formula of each, what it claims and what it does in the tiny worlds.
"""

from __future__ import annotations

from typing import Literal

from guardlit.surrogate import ClipRange
from guardlit.surrogate import Objective as Objective


class FlowGRPO(Objective):
    """The baseline (arXiv 2505.05470): log r, every step weighted alike. Gradient scale g (dmu + s noise) / s^2.

    Args:
        clip_range: 1e-4 in the published SD3.5-M and FLUX settings.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 1e-4, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("raw", "one", clip_range, clip_unit)


class TempFlowGRPO(Objective):
    """Temp-Reweight: the baseline weighted by the step's noise level s, 1 on average (TempFlow-GRPO, arXiv 2508.04324).

    Args:
        clip_range: as for the baseline.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 1e-4, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("raw", "std", clip_range, clip_unit, normalize_weight=True)


class MeanRevised(Objective):
    """log r without its bias, eq. (7)'s first term: gradient scale g noise / s.

    Args:
        clip_range: as for the baseline.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 1e-4, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("mean_revised", "one", clip_range, clip_unit)


class GRPOGuard(Objective):
    """GRPO-Guard (eq. 12): RatioNorm and the weight 1 / dt; its gradient scale beta noise is flat in t.

    Args:
        clip_range: 4e-6 (PickScore) and 2e-6 (OCR, GenEval) in the published SD3.5-M settings.
        clip_unit: see `Objective`.
        ratio_norm: off gives the baseline's log ratio.
        reweight: off weights every step alike; with both off this is `FlowGRPO`.
    """

    def __init__(
        self,
        clip_range: ClipRange = 4e-6,
        clip_unit: Literal["mean", "sum"] = "mean",
        ratio_norm: bool = True,
        reweight: bool = True,
    ) -> None:
        super().__init__(
            "ratio_norm" if ratio_norm else "raw", "inverse_dt" if reweight else "one", clip_range, clip_unit
        )


class RatioNorm(GRPOGuard):
    """RatioNorm alone (eq. 8): gradient scale g noise = beta dt noise.

    Args:
        clip_range: as for GRPO-Guard.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 4e-6, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(clip_range, clip_unit, reweight=False)


class GuardReweight(GRPOGuard):
    """The weight 1 / dt alone, on the baseline's log ratio: gradient scale beta (dmu + s noise) / s^2.

    Args:
        clip_range: as for the baseline.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 1e-4, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__(clip_range, clip_unit, ratio_norm=False)


class FlowDPPO(Objective):
    """Flow-DPPO (arXiv 2606.11025): the baseline with a mask by the step's exact KL(old, new) in place of the clip.

    A transition has no gradient where its KL exceeds the limit and the update moves its ratio further away from 1.

    Args:
        clip_range: the limit of the KL, nats per latent element: 1e-5 in verl-omni's recipe for Qwen-Image.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 1e-5, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("raw", "one", clip_range, clip_unit, bound="kl")


class FlashGRPO(Objective):
    """Flash-GRPO (arXiv 2605.15980): the baseline weighted by s / |g|, the inverse of that log ratio's gradient scale.

    The weights are 1 on average over the steps that a window can choose. It trains one step an image, the same one in a
    group: `rollout.window: RandomWindow` with `length: 1`.

    Args:
        clip_range: 1e-3 in the published Wan 2.1 settings.
        clip_unit: see `Objective`.
    """

    images_branch_once = True

    def __init__(self, clip_range: ClipRange = 1e-3, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("raw", "inverse_scale", clip_range, clip_unit, normalize_weight=True)


class PCPO(Objective):
    """PCPO (arXiv 2509.25774): log r in place of r, and a gradient in proportion to the step's share dt.

    The hinge max(0, xi |A| - A log r) is a clip of log r at xi. Its constant zeta is chosen so that the weights
    dt s / |g| are 1 on average over the trained steps.

    Args:
        clip_range: xi; guardlit's default is the baseline's clip range.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = 1e-4, clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("raw", "proportionate", clip_range, clip_unit, normalize_weight=True, surrogate="log_ratio")


class VelocityNorm(Objective):
    """guardlit's own: RatioNorm with g divided out of the log ratio, sign(g) mean(dv noise).

    Its gradient is flat over the steps in every sampler, without a weight, and one clip range is nearly as deep at one
    step as at another.

    Args:
        clip_range: no range is published; a RatioNorm range over |g| is the same at one step.
        clip_unit: see `Objective`.
    """

    def __init__(self, clip_range: ClipRange = "auto", clip_unit: Literal["mean", "sum"] = "mean") -> None:
        super().__init__("velocity", "one", clip_range, clip_unit)


PRESETS: tuple[type[Objective], ...] = (FlowGRPO, TempFlowGRPO, GuardReweight, MeanRevised, RatioNorm, GRPOGuard)
"""Table 2, row by row."""
OBJECTIVES: tuple[type[Objective], ...] = (*PRESETS, FlowDPPO, FlashGRPO, PCPO, VelocityNorm)
"""All of them."""
