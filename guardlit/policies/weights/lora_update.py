"""One layer's low-rank update, as LoRA files hold it and adapters apply it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Update:
    """W + scale B A for one layer; with a magnitude, DoRA's m (W + scale B A) / norm, norms over each row.

    Attributes:
        down: A, (r, in) float32; (r, in, height, width) for a convolution.
        up: B, (out, r) float32; (out, r, 1, 1) for a convolution.
        scale: alpha / r, or alpha / sqrt(r).
        bias: (out,) float32, of B: scaled as B is.
        magnitude: m, (out,) float32.
    """

    down: Tensor
    up: Tensor
    scale: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Rank r."""
        return len(self.down)

    @property
    def alpha(self) -> float:
        """Scale times rank: alpha, unless the scale is that of rslora."""
        return self.scale * self.rank


def some(names: Iterable[str]) -> str:
    """Names for a message: the first two, and how many others there are."""
    found = sorted(names)
    text = ", ".join(f"'{name}'" for name in found[:2])
    return f"{text} and {len(found) - 2} more" if len(found) > 2 else text
