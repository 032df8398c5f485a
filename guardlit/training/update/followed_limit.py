"""A limit that a chosen fraction of a run's values exceeds, from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

DRIFT = 1.1
"""Change of the log ratios' size that the clip range follows at once: about 0.03 of the clipped fraction."""


class FollowedLimit:
    """A limit that follows the sizes of a round's off-policy updates.

    In the first round it follows every update. From then on it changes in two cases only. A finished round in which a
    fraction outside the tolerance exceeded it sets the limit that would have been exceeded by exactly the target. A
    round's first off-policy update whose sizes are `DRIFT` times as large or small as the limit was made for scales it.

    Args:
        fraction: of the sizes, that shall exceed the limit.
        tolerance: while a round's fraction is this close to `fraction`, the limit stays.
    """

    def __init__(self, fraction: float, tolerance: float) -> None:
        self.fraction, self.tolerance = fraction, tolerance
        self.limit: float | None = None
        """None before the first sizes above 0."""
        self._sizes: list[Tensor] = []  # of the round's off-policy updates
        self._from_first = True  # whether these begin with the round's first off-policy update
        self._growth: float | None = None  # limit of the last round over that of its first off-policy update alone

    def observe(self, sizes: Tensor, first: bool) -> None:
        """Observe the sizes (n,) of an off-policy update on all ranks; `first` of its round or not."""
        if not self._sizes:
            self._from_first = first
        self._sizes.append(sizes)
        if self._growth is None:
            self.limit = self._quantile(self._sizes) or self.limit
        elif first:
            self._rescale()

    def _rescale(self) -> None:
        """Follow a change of scale at a round's first off-policy update; later updates grow as in the last round."""
        scale = self._quantile(self._sizes)
        if scale is None or self._growth is None or self.limit is None:
            return
        fitting = self._growth * scale
        if not 1 / DRIFT < fitting / self.limit < DRIFT:
            self.limit = fitting

    def finish_round(self) -> None:
        """Correct the limit by the fraction of the finished round that exceeded it, and start the next."""
        everything, first = self._quantile(self._sizes), self._quantile(self._sizes[:1])
        if everything is not None and first is not None and self.limit is not None:
            exceeded = float((torch.cat(self._sizes) > self.limit).double().mean())
            if abs(exceeded - self.fraction) > self.tolerance:
                self.limit = everything
            if self._from_first or self._growth is None:
                self._growth = everything / first
        self._sizes = []

    def _quantile(self, updates: Sequence[Tensor]) -> float | None:
        """The size that `fraction` of some updates' sizes exceed; None where none is above 0."""
        sizes = torch.cat([*updates, torch.empty(0, dtype=torch.float64)])
        if not len(sizes):
            return None
        # a sort, since torch.quantile refuses more than 2^24 values
        return float(sizes.sort().values[int((1 - self.fraction) * (len(sizes) - 1))]) or None

    def state_dict(self) -> dict[str, Any]:
        """The limit and the round's observations so far."""
        place = {"from_first": self._from_first}
        return {"limit": self.limit, "growth": self._growth, "sizes": self._sizes, **place}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.limit, self._growth, self._sizes = state["limit"], state["growth"], list(state["sizes"])
        self._from_first = state.get("from_first", True)
