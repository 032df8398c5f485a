"""`clip_range: auto`: a clip range that clips a chosen fraction of the transitions, measured by the run itself.

The size of a log ratio follows from learning rate, schedule, resolution and the updates made so far, so that no number
for the clip range carries over from one run to another. The clipped fraction does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from guardlit.processes.world import World
from guardlit.surrogate import Objective

DRIFT = 1.1
"""Change of the log ratios' size that the clip range follows at once: about 0.03 of the clipped fraction."""


class Calibrated(Protocol):
    """What the calibration reads of the module."""

    objective: Objective
    outputs: list[dict[str, Tensor]]

    @property
    def elements(self) -> int:
        """D, latent elements of a sample."""

    @property
    def round_index(self) -> int:
        """Index of the round in progress."""

    @property
    def world(self) -> World:
        """The ranks."""


class ClipCalibration(pl.Callback):
    """Sets the objective's clip range from the log ratios that a run shows, where `clip_range: auto` asks for it.

    A run adds one by itself; list it among the callbacks to change its arguments. Logged after each update:

    | key | unit |
    |---|---|
    | `train/clip_range` | upper side of the clip range, in the objective's `clip_unit`; with `auto` only |

    The first update of a round is on-policy and carries no information. In a run's first round the range follows every
    later update. From then on it changes in two cases only. A finished round that clipped a fraction outside the
    tolerance sets the range that would have clipped exactly the target of it. A round's first off-policy update whose
    log ratios are `DRIFT` times as large or small as the range was made for scales it.

    Args:
        fraction: of the transitions of a round's off-policy updates, the part to clip: `train/clip_off_policy`.
        tolerance: while a round's clipped fraction is this close to `fraction`, the range stays.

    Raises:
        ValueError: a fraction or tolerance out of range.
    """

    def __init__(self, fraction: float = 0.2, tolerance: float = 0.05) -> None:
        if not 0 < fraction < 1 or not 0 <= tolerance < fraction:
            raise ValueError(
                f"ClipCalibration: fraction={fraction} must lie in (0, 1) and tolerance={tolerance} in [0, fraction)"
            )
        self.fraction, self.tolerance = fraction, tolerance
        self.limit: float | None = None
        """Size of the log ratio from which it is clipped; None before the first off-policy update."""
        self._round = -1
        self._updates = 0  # of the round
        self._sizes: list[Tensor] = []  # |log ratio| of the round's off-policy updates, of all ranks
        self._growth: float | None = None  # limit of the last round over that of its first off-policy update alone

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the range of the checkpoint."""
        self.apply(pl_module)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Observe the update that is about to be made. Collective."""
        if (upper := self.update(pl_module)) is not None:  # type: ignore[arg-type]
            pl_module.log("train/clip_range", upper)

    def update(self, module: Calibrated) -> float | None:
        """Observe an update and apply the range. Collective: every rank must call it.

        Returns:
            The upper side of the clip range; None where there is none yet, or the configuration gives one.
        """
        if not module.objective.auto:
            return None
        self.observe(module.round_index, module.outputs, module.world.gather)
        self.apply(module)
        return None if module.objective.clip_range is None else module.objective.clip_range[1]

    def apply(self, module: Calibrated) -> None:
        """Set the objective's clip range, if it is to be calibrated and a limit is known."""
        if module.objective.auto and self.limit is not None:
            module.objective.calibrate(self.limit, module.elements)

    def observe(
        self, round: int, outputs: Sequence[Mapping[str, Tensor]], gather: Callable[[Tensor], Tensor]
    ) -> float | None:
        """Observe an update. Collective: every rank must call it.

        Args:
            round: index of its round.
            outputs: of its micro-batches: `log_ratio` and `sample_weight`, (B,) each.
            gather: (n,) on every rank -> (world size, n).

        Returns:
            The limit from now on.
        """
        if round != self._round:
            self._finish_round()
            self._round, self._updates, self._sizes = round, 0, []
        self._updates += 1
        if self._updates > 1:
            size = torch.cat([o["log_ratio"] for o in outputs]).abs().double()
            counts = torch.cat([o["sample_weight"] for o in outputs]) != 0
            everywhere = gather(torch.where(counts, size, torch.nan)).flatten().cpu()
            self._sizes.append(everywhere[torch.isfinite(everywhere)])
            if self._growth is None:
                self.limit = self._quantile(self._sizes) or self.limit
            elif self._updates == 2:
                self._rescale()
        return self.limit

    def _rescale(self) -> None:
        """Follow a change of scale at a round's first off-policy update; later updates grow as in the last round."""
        scale = self._quantile(self._sizes)
        if scale is None or self._growth is None or self.limit is None:
            return
        fitting = self._growth * scale
        if not 1 / DRIFT < fitting / self.limit < DRIFT:
            self.limit = fitting

    def _finish_round(self) -> None:
        """Correct the limit by the fraction that the finished round clipped."""
        everything, first = self._quantile(self._sizes), self._quantile(self._sizes[:1])
        if everything is None or first is None or self.limit is None:
            return
        clipped = float((torch.cat(self._sizes) > self.limit).double().mean())
        if abs(clipped - self.fraction) > self.tolerance:
            self.limit = everything
        self._growth = everything / first

    def _quantile(self, updates: Sequence[Tensor]) -> float | None:
        """The size that `fraction` of some updates' log ratios exceed; None where none is above 0."""
        sizes = torch.cat([*updates, torch.empty(0, dtype=torch.float64)])
        if not len(sizes):
            return None
        # a sort, since torch.quantile refuses more than 2^24 values
        return float(sizes.sort().values[int((1 - self.fraction) * (len(sizes) - 1))]) or None

    def state_dict(self) -> dict[str, Any]:
        """The limit and the round's observations so far; the same on every rank."""
        place = {"round": self._round, "updates": self._updates}
        return {"limit": self.limit, "growth": self._growth, "sizes": self._sizes, **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.limit, self._growth, self._sizes = state_dict["limit"], state_dict["growth"], list(state_dict["sizes"])
        self._round, self._updates = state_dict["round"], state_dict["updates"]
