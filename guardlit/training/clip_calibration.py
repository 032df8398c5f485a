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
    from guardlit.training.module import GRPOModule


DRIFT = 1.1
"""Change of the log ratios' size within a run that the clip range follows at once: about 0.03 in the clipped share."""


class ClipCalibration(pl.Callback):
    """Sets the objective's clip range from the log ratios that a run shows, where `clip_range: auto` asks for it.

    A run adds one by itself; list it among the callbacks to set its numbers. Logs `train/clip_range`, the upper side in
    the objective's own unit.

    The first update of a round is on-policy and says nothing. In a run's first round the range follows every update
    after that. From then on it stays as it is unless one of two things says that it is off. A round that is over, by
    having clipped a share outside the tolerance, sets the range that would have clipped just the target's share of it.
    A round's first off-policy update, by log ratios `DRIFT` times as large or small as the range was made for, scales
    it.

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
        self._growth: float | None = None  # limit of the last round over that of its first off-policy update alone

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
            if self._growth is None:
                self.limit = self._quantile(self._sizes) or self.limit
            elif self._updates == 2:
                self._rescale()
        return self.limit

    def _rescale(self) -> None:
        """Follow a change of scale that a round's first off-policy update shows; the later ones grow as last time."""
        scale = self._quantile(self._sizes)
        if scale is None or self._growth is None or self.limit is None:
            return
        fitting = self._growth * scale
        if not 1 / DRIFT < fitting / self.limit < DRIFT:
            self.limit = fitting

    def _judge(self) -> None:
        """Look back on a round that is over."""
        whole, first = self._quantile(self._sizes), self._quantile(self._sizes[:1])
        if whole is None or first is None or self.limit is None:
            return
        share = float((torch.cat(self._sizes) > self.limit).double().mean())
        if abs(share - self.fraction) > self.tolerance:
            self.limit = whole
        self._growth = whole / first

    def _quantile(self, updates: Sequence[Tensor]) -> float | None:
        """The size beyond which the target's share of some updates lies; None where there is none above 0."""
        sizes = torch.cat([*updates, torch.empty(0, dtype=torch.float64)])
        if not len(sizes):
            return None
        # a sort, since torch.quantile refuses more than 2^24 values
        return float(sizes.sort().values[int((1 - self.fraction) * (len(sizes) - 1))]) or None

    def state_dict(self) -> dict[str, Any]:
        """The limit, and what the round has shown so far; the same on every process."""
        place = {"round": self._round, "updates": self._updates}
        return {"limit": self.limit, "growth": self._growth, "sizes": self._sizes, **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.limit, self._growth, self._sizes = state_dict["limit"], state_dict["growth"], list(state_dict["sizes"])
        self._round, self._updates = state_dict["round"], state_dict["updates"]
