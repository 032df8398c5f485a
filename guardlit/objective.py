"""The rows of Table 2 of GRPO-Guard (arXiv 2510.22319), each a preset of `Objective`."""

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


PRESETS: tuple[type[Objective], ...] = (FlowGRPO, TempFlowGRPO, GuardReweight, MeanRevised, RatioNorm, GRPOGuard)
"""Table 2, row by row."""
