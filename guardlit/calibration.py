"""`clip_range: auto`: a clip range that acts on a chosen share of the transitions, found by the run itself.

The size of a log ratio follows from learning rate, schedule, resolution and the updates made so far, so that no number
for the clip range carries over from one run to another. The share that it clips does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.objective import Objective


@dataclass(frozen=True)
class ClipTarget:
    """What `clip_range: auto` aims at.

    Attributes:
        fraction: share of the transitions of a round's off-policy updates that is to be clipped.
        tolerance: as long as a round's share is within this of `fraction`, the range stays as it is.
    """

    fraction: float = 0.2
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1 or not 0 <= self.tolerance < self.fraction:
            raise GuardlitError(
                f"clip_target: fraction={self.fraction} must lie in (0, 1) and tolerance={self.tolerance} in "
                "[0, fraction)"
            )


class ClipCalibration:
    """Sets an objective's clip range from the log ratios it sees.

    The first update of a round is on-policy and says nothing. In a run's first round the range follows every update
    after that; from then on a round that clipped a share within the tolerance changes nothing, and one that did not
    sets the range that would have clipped just the target's share of it.

    Args:
        objective: whose range is set, if it asks for it.
        target: the share aimed at.
        elements: D, latent elements of a sample.
    """

    def __init__(self, objective: Objective, target: ClipTarget, elements: int) -> None:
        self._objective, self._target, self._elements = objective, target, elements
        self._sizes: list[Tensor] = []  # |log ratio| of the round's off-policy updates, of all processes
        self._updates = 0  # of the round
        self._settled = False  # whether a round is behind the run
        self._limit: float | None = None

    def begin_round(self) -> None:
        """A new round was drawn: judge the last one, and count anew."""
        if self._sizes and self._limit is not None:
            sizes = torch.cat(self._sizes)
            share = float((sizes > self._limit).double().mean())
            if abs(share - self._target.fraction) > self._target.tolerance:
                self._set(sizes)
            self._settled = True
        self._sizes, self._updates = [], 0

    def observe(self, outputs: Sequence[Mapping[str, Tensor]], gather: Callable[[Tensor], Tensor]) -> None:
        """Take in an update; to be called by all processes.

        Args:
            outputs: of its micro-batches: `log_ratio` and `sample_weight`, (B,) each.
            gather: (n,) on every process -> (world, n).
        """
        if not self._objective.auto:
            return
        self._updates += 1
        if self._updates == 1:
            return
        size = torch.cat([o["log_ratio"] for o in outputs]).abs().double()
        counts = torch.cat([o["sample_weight"] for o in outputs]) != 0
        everywhere = gather(torch.where(counts, size, torch.nan)).flatten().cpu()
        self._sizes.append(everywhere[torch.isfinite(everywhere)])
        if not self._settled:
            self._set(torch.cat(self._sizes))

    def _set(self, sizes: Tensor) -> None:
        if len(sizes) and float(limit := torch.quantile(sizes, 1 - self._target.fraction)) > 0:
            self._limit = float(limit)
            self._objective.calibrate(self._limit, self._elements)

    def metrics(self) -> dict[str, float]:
        """`train/clip_range`, upper side, in the objective's unit, once an automatic one is known."""
        found = self._objective.clip_range
        return {"train/clip_range": found[1]} if self._objective.auto and found is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """The range, and what the round has shown so far."""
        sizes = torch.cat(self._sizes) if self._sizes else torch.empty(0, dtype=torch.float64)
        return {"limit": self._limit, "sizes": sizes, "updates": self._updates, "settled": self._settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._sizes = [state["sizes"]] if len(state["sizes"]) else []
        self._updates, self._settled, self._limit = state["updates"], state["settled"], state["limit"]
        if self._objective.auto and self._limit is not None:
            self._objective.calibrate(self._limit, self._elements)
