"""`clip_range: auto`: a clip range that acts on a chosen share of the transitions, found by the run itself.

The size of a log ratio follows from learning rate, schedule, resolution and the updates made so far, so that no number
for the clip range carries over from one run to another. The share that it clips does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor

if TYPE_CHECKING:
    from guardlit.module import GRPOModule


class ClipCalibration(pl.Callback):
    """Sets the objective's clip range from the log ratios that a run shows, where `clip_range: auto` asks for it.

    A run adds one by itself; list it among the callbacks to set its numbers. The first update of a round is on-policy
    and says nothing. In a run's first round the range follows every update after that; from then on a round that
    clipped a share within the tolerance changes nothing, and one that did not sets the range that would have clipped
    just the target's share of it. Logs `train/clip_range`, the upper side in the objective's own unit.

    Args:
        fraction: share of the transitions of a round's off-policy updates that is to be clipped.
        tolerance: as long as a round's share is within this of `fraction`, the range stays as it is.

    Raises:
        ValueError: numbers that make no sense.
    """

    def __init__(self, fraction: float = 0.2, tolerance: float = 0.05) -> None:
        if not 0 < fraction < 1 or not 0 <= tolerance < fraction:
            raise ValueError(
                f"ClipCalibration: fraction={fraction} must lie in (0, 1) and tolerance={tolerance} in [0, fraction)"
            )
        self.fraction, self.tolerance = fraction, tolerance
        self.limit: float | None = None
        """Size of the log ratio from which it is clipped; None until an off-policy update was seen."""
        self._round = -1
        self._updates = 0  # of the round
        self._sizes: list[Tensor] = []  # |log ratio| of the round's off-policy updates, of all processes
        self._settled = False  # whether a round is behind the run

    @staticmethod
    def needed(module: GRPOModule) -> list[pl.Callback]:
        """What a module has to add to its Trainer's callbacks."""
        given = any(isinstance(c, ClipCalibration) for c in module.trainer.callbacks)  # type: ignore[attr-defined]
        return [ClipCalibration()] if module.objective.auto and not given else []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the range of the checkpoint."""
        self._apply(pl_module)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Take in the update that is about to be made."""
        module: GRPOModule = pl_module  # type: ignore[assignment]
        if module.objective.auto:
            self.observe(module.experience.round.index, module.outputs, module.gather)
            self._apply(module)
            if module.objective.clip_range is not None:
                module.log("train/clip_range", module.objective.clip_range[1])

    def _apply(self, module: GRPOModule) -> None:
        if module.objective.auto and self.limit is not None:
            module.objective.calibrate(self.limit, module.elements)

    def observe(
        self, round: int, outputs: Sequence[Mapping[str, Tensor]], gather: Callable[[Tensor], Tensor]
    ) -> float | None:
        """Take in an update; to be called by all processes.

        Args:
            round: index of its round.
            outputs: of its micro-batches: `log_ratio` and `sample_weight`, (B,) each.
            gather: (n,) on every process -> (world, n).

        Returns:
            The limit from now on.
        """
        if round != self._round:
            self._judge()
            self._round, self._updates, self._sizes = round, 0, []
        self._updates += 1
        if self._updates > 1:
            size = torch.cat([o["log_ratio"] for o in outputs]).abs().double()
            counts = torch.cat([o["sample_weight"] for o in outputs]) != 0
            everywhere = gather(torch.where(counts, size, torch.nan)).flatten().cpu()
            self._sizes.append(everywhere[torch.isfinite(everywhere)])
            if not self._settled:
                self._set()
        return self.limit

    def _judge(self) -> None:
        """Look back on a round that is over."""
        if self._sizes and self.limit is not None:
            share = float((torch.cat(self._sizes) > self.limit).double().mean())
            if abs(share - self.fraction) > self.tolerance:
                self._set()
            self._settled = True

    def _set(self) -> None:
        sizes = torch.cat(self._sizes)
        # a sort, since torch.quantile refuses more than 2^24 values
        if len(sizes) and (limit := float(sizes.sort().values[int((1 - self.fraction) * (len(sizes) - 1))])) > 0:
            self.limit = limit

    def state_dict(self) -> dict[str, Any]:
        """The limit, and what the round has shown so far; the same on every process."""
        sizes = torch.cat(self._sizes) if self._sizes else torch.empty(0, dtype=torch.float64)
        place = {"round": self._round, "updates": self._updates, "settled": self._settled}
        return {"limit": self.limit, "sizes": sizes, **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.limit, self._settled = state_dict["limit"], state_dict["settled"]
        self._round, self._updates = state_dict["round"], state_dict["updates"]
        self._sizes = [state_dict["sizes"]] if len(state_dict["sizes"]) else []
