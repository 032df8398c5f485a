"""What keeps an update near the policy that drew the samples: a clip of the ratio, or a mask by the step's KL.

Clip ranges such as 4e-6 are 17 to 34 units in the last place of a float32 near 1: the ratio is therefore never compared
with 1 +- clip_range, but its logarithm with log1p(+- clip_range), and r - 1 is taken by expm1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

BoundKind = Literal["ratio", "kl"]
ClipUnit = Literal["mean", "sum"]
ClipRange = float | tuple[float, float] | Literal["auto", "auto_per_step"] | None
Limit = float | Tensor
"""One number, or one for each row (B,)."""


@dataclass
class Bound:
    """Where a transition's gradient ends.

    `ratio` is PPO's clip: past its end, an update that moves the ratio further away has no gradient. `kl` is the mask
    of Flow-DPPO (arXiv 2606.11025): the same, with the end where the exact KL(old, new) of the step exceeds a limit.

    Attributes:
        kind: `ratio` or `kl`.
        unit: `mean`, of means over latent elements, or `sum`, the same number times the D elements.
        clip_range: lower and upper end as distances of the ratio from 1, or the KL's limit twice; None bounds nothing.
        auto: whether `calibrate` sets the range.
        per_step: whether it sets one for each denoising step.
        of_log: whether the range is one of the log ratio, not of the ratio.
        step_limits: what `calibrate` set, by denoising step, (T,) float64; infinite for steps that it knows nothing of.
    """

    kind: BoundKind
    unit: ClipUnit
    clip_range: tuple[float, float] | None
    auto: bool
    per_step: bool
    of_log: bool
    step_limits: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, kind: BoundKind, clip_range: ClipRange, unit: ClipUnit, of_log: bool) -> Bound:
        """A bound as configured; raises `ValueError` for a range that is not positive or does not fit the kind."""
        if clip_range is None or isinstance(clip_range, str):
            return cls(kind, unit, None, clip_range is not None, clip_range == "auto_per_step", of_log)
        one = isinstance(clip_range, float | int)
        low, high = (clip_range, clip_range) if isinstance(clip_range, float | int) else clip_range
        if kind == "kl" and not one:
            raise ValueError(f"clip_range={clip_range}: a bound of the KL has one limit, since a KL has one side")
        below_1 = kind == "ratio" and unit == "mean" and not of_log
        if not (low > 0 and 0 < high < math.inf) or (below_1 and low >= 1):
            raise ValueError(f"clip_range={clip_range} must be positive, and below 1 on its lower side in unit mean")
        return cls(kind, unit, (low, high), False, False, of_log)

    @property
    def words(self) -> str:
        """What it limits."""
        return "log ratio" if self.kind == "ratio" else "KL"

    def _scale(self, elements: int) -> float:
        return 1 / elements if self.unit == "sum" else 1.0

    def log_bounds(self, elements: int) -> tuple[float, float]:
        """The range as bounds of the log ratio, for latents of that many elements; infinite where nothing bounds it."""
        if self.clip_range is None or self.kind == "kl":
            return -math.inf, math.inf
        low, high = (end * self._scale(elements) for end in self.clip_range)
        if self.of_log:
            return -low, high
        # a range of summed log-likelihoods may reach 1 - low <= 0
        return (math.log1p(-low) if low < 1 else -math.inf), math.log1p(high)

    def limit(self, elements: int) -> float:
        """The smallest size that is out of bounds at any step: of a log ratio, or of the KL; infinite for none."""
        if self.step_limits is not None:
            return float(self.step_limits.min())
        if self.kind == "ratio":
            low, high = self.log_bounds(elements)
            return min(-low, high)
        return math.inf if self.clip_range is None else self.clip_range[0] * self._scale(elements)

    def size(self, log_ratio: Tensor, kl: Tensor) -> Tensor:
        """What the bound limits, (B,): the size of the log ratio, or the KL."""
        return log_ratio.abs() if self.kind == "ratio" else kl

    def outside(self, log_ratio: Tensor, kl: Tensor, elements: int, step: Tensor | None) -> Tensor:
        """Which of B transitions are out of bounds, (B,) bool; `step` is their denoising step, for ranges per step."""
        if self.kind == "kl":
            return kl > self._limits(elements, step)
        low, high = self._ends(elements, step)
        return (log_ratio < low) | (log_ratio > high)

    def surrogate(self, log_ratio: Tensor, kl: Tensor, advantage: Tensor, elements: int, step: Tensor | None) -> Tensor:
        """The bounded (r - 1) A, (B,), where r - 1 is log r if the range is one of the log ratio.

        Past the bound it is constant in the direction in which it would grow.

        Args:
            log_ratio: (B,) float64 with gradient.
            kl: KL(old, new), (B,) float64.
            advantage: (B,) float64.
            elements: D.
            step: denoising step, (B,) int64.
        """
        gain = (log_ratio if self.of_log else torch.expm1(log_ratio)) * advantage
        if self.kind == "kl":
            blocked = (kl.detach() > self._limits(elements, step)) & (gain.detach() > 0)
            return torch.where(blocked, gain.detach(), gain)
        low, high = self._ends(elements, step)
        bounded = log_ratio.clamp(low, high)  # type: ignore[arg-type]  # both are floats, or both tensors
        return torch.minimum(gain, (bounded if self.of_log else torch.expm1(bounded)) * advantage)

    def _ends(self, elements: int, step: Tensor | None) -> tuple[float, float] | tuple[Tensor, Tensor]:
        if self.step_limits is None:
            return self.log_bounds(elements)
        limits = self._of_steps(step)
        return -limits, limits

    def _limits(self, elements: int, step: Tensor | None) -> Limit:
        return self.limit(elements) if self.step_limits is None else self._of_steps(step)

    def _of_steps(self, step: Tensor | None) -> Tensor:
        assert self.step_limits is not None
        if step is None:
            raise ValueError("a clip range per denoising step needs the steps of the transitions: pass step (B,)")
        return self.step_limits.to(step.device)[step]

    def calibrate(self, limit: float, elements: int) -> None:
        """Bound sizes of `limit` and above, for latents of that many elements; raises `ValueError` at 0."""
        if not 0 < limit < math.inf:
            raise ValueError(f"a clip range must be positive and finite, found log ratio {limit}")
        self.clip_range, self.step_limits = self.range_of(limit, elements), None

    def calibrate_steps(self, limits: Sequence[float], device: torch.device | str = "cpu") -> None:
        """Bound sizes of `limits` and above at each of T denoising steps; infinity leaves a step unbounded.

        Args:
            limits: T numbers.
            device: where the objective is called.

        Raises:
            ValueError: a limit that is not above 0.
        """
        if not all(limit > 0 for limit in limits):
            raise ValueError(f"clip ranges must be positive, found limits {list(limits)}")
        self.clip_range, self.step_limits = None, torch.tensor(limits, dtype=torch.float64, device=device)

    def range_of(self, limit: float, elements: int) -> tuple[float, float]:
        """A size as a clip range in the bound's unit."""
        unit = elements if self.unit == "sum" else 1
        if self.kind == "kl" or self.of_log:
            return limit * unit, limit * unit
        return -math.expm1(-limit) * unit, math.expm1(limit) * unit
