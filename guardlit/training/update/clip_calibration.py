"""`clip_range: auto`: a clip range that clips a chosen fraction of the transitions, measured by the run itself.

The size of a log ratio follows from learning rate, schedule, resolution and the updates made so far, so that no number
for the clip range carries over from one run to another. The clipped fraction does. `clip_range: auto_per_step` makes it
equal at all denoising steps, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor

from guardlit.processes.world import World
from guardlit.rounds.noise_floor import bounded
from guardlit.rounds.settings import Rollout
from guardlit.surrogate import Objective
from guardlit.training.update.followed_limit import FollowedLimit

FRACTION = 0.2
"""Of the transitions of a round's off-policy updates, the part that is clipped by default."""
ALL = -1
"""Stands for all denoising steps together, where a step's index stands otherwise."""


class Calibrated(Protocol):
    """What the calibration reads of the module."""

    objective: Objective
    outputs: list[dict[str, Tensor]]
    rollout: Rollout

    @property
    def elements(self) -> int:
        """D, latent elements of a sample."""

    @property
    def round_index(self) -> int:
        """Index of the round in progress."""

    @property
    def world(self) -> World:
        """The ranks."""

    @property
    def device(self) -> torch.device:
        """Where it trains."""


class ClipCalibration(pl.Callback):
    """Sets the objective's clip range from the log ratios that a run shows, where `clip_range: auto` asks for it.

    With `bound: kl` it is the limit of the KL, from the KLs that a run shows. A run adds one by itself; list it among
    the callbacks to change its arguments. Logged after each update:

    | key | unit |
    |---|---|
    | `train/clip_range` | upper side of the clip range, in the objective's `clip_unit`; with `auto` only |
    | `train/clip_range/tTT` | that of denoising step TT, once it is known; with `auto_per_step` only |

    The first update of a round is on-policy and carries no information. In a run's first round the range follows every
    later update. From then on it changes in two cases only. A finished round that clipped a fraction outside the
    tolerance sets the range that would have clipped exactly the target of it. A round's first off-policy update whose
    log ratios are 1.1 times as large or small as the range was made for scales it.

    Args:
        fraction: of the transitions of a round's off-policy updates, the part to clip: `train/clip_off_policy`.
        tolerance: while a round's clipped fraction is this close to `fraction`, the range stays; ranges per step are
            corrected after every round.

    Raises:
        ValueError: a fraction or tolerance out of range.
    """

    def __init__(self, fraction: float = FRACTION, tolerance: float = 0.05) -> None:
        if not 0 < fraction < 1 or not 0 <= tolerance < fraction:
            raise ValueError(
                f"ClipCalibration: fraction={fraction} must lie in (0, 1) and tolerance={tolerance} in [0, fraction)"
            )
        self.fraction, self.tolerance = fraction, tolerance
        self._limits: dict[int, FollowedLimit] = {}  # by denoising step, or of `ALL`
        self._round = -1
        self._updates = 0  # of the round

    @property
    def limit(self) -> float | None:
        """Size of the log ratio from which it is clipped at any step; None before the first off-policy update."""
        return self.limits.get(ALL)

    @property
    def limits(self) -> dict[int, float]:
        """Those that are known, by denoising step, or of `ALL`."""
        return {step: found.limit for step, found in sorted(self._limits.items()) if found.limit is not None}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the range of the checkpoint."""
        self.apply(pl_module)  # type: ignore[arg-type]

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Observe the update that is about to be made. Collective."""
        for key, upper in self.update(pl_module).items():  # type: ignore[arg-type]
            pl_module.log(key, upper)

    def update(self, module: Calibrated) -> dict[str, float]:
        """Observe an update and apply the range. Collective: every rank must call it.

        Returns:
            The upper side of the clip range, or of each step's, by key of the logs; empty where there is none yet, or
            the configuration gives one.
        """
        if not module.objective.auto:
            return {}
        per_step = module.objective.bound.per_step
        self.observe(module.round_index, module.outputs, module.world.gather, per_step)
        self.apply(module)
        limits = {step: limit for step, limit in self.limits.items() if (step == ALL) != per_step}
        ends = {step: module.objective.bound.range_of(limit, module.elements) for step, limit in limits.items()}
        return {"train/clip_range" + (f"/t{step:02d}" if per_step else ""): high for step, (_, high) in ends.items()}

    def apply(self, module: Calibrated) -> None:
        """Set the objective's clip range, if it is to be calibrated and a limit is known."""
        if not module.objective.auto:
            return
        # a resumed run may have the other kind of ranges than its checkpoint
        if not module.objective.bound.per_step:
            if self.limit is not None:
                module.objective.calibrate(self.limit, module.elements)
        elif known := {step: limit for step, limit in self.limits.items() if step != ALL}:
            steps = range(module.rollout.num_inference_steps)
            module.objective.bound.calibrate_steps([known.get(step, math.inf) for step in steps], module.device)

    def observe(
        self,
        round: int,
        outputs: Sequence[Mapping[str, Tensor]],
        gather: Callable[[Tensor], Tensor],
        per_step: bool = False,
    ) -> float | None:
        """Observe an update. Collective: every rank must call it.

        Args:
            round: index of its round.
            outputs: of its micro-batches: `log_ratio`, or `bounded`, `sample_weight` and `step`, (B,) each.
            gather: (n, ...) on every rank -> (world size, n, ...).
            per_step: whether each denoising step has its own limit.

        Returns:
            The limit from now on; None where each step has its own.
        """
        if round != self._round:
            for limit in self._limits.values():
                limit.finish_round()
            self._round, self._updates = round, 0
        self._updates += 1
        if self._updates > 1:
            size = torch.cat([bounded(o) for o in outputs]).double()
            counts = torch.cat([o["sample_weight"] for o in outputs]) != 0
            step = torch.cat([o["step"] for o in outputs]) if per_step else torch.full_like(size, ALL)
            both = gather(torch.stack([torch.where(counts, size, torch.nan), step.double()], dim=-1))
            sizes, steps = both.flatten(0, 1)[both.flatten(0, 1)[:, 0].isfinite()].cpu().T
            for index in steps.unique().tolist():
                limit = self._limits.setdefault(int(index), self._new(int(index)))
                limit.observe(sizes[steps == index], first=self._updates == 2)
        return self.limit

    def _new(self, step: int) -> FollowedLimit:
        # limits that may stay anywhere within a tolerance would keep the steps apart: each is corrected every round
        return FollowedLimit(self.fraction, self.tolerance if step == ALL else 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The limits and the round's observations so far; the same on every rank."""
        place = {"round": self._round, "updates": self._updates}
        return {"limits": {step: limit.state_dict() for step, limit in self._limits.items()}, **place}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._round, self._updates = state_dict["round"], state_dict["updates"]
        # checkpoints of earlier versions hold one limit
        limits = state_dict.get("limits", {ALL: state_dict})
        self._limits = {step: self._new(step) for step in limits}
        for step, limit in self._limits.items():
            limit.load_state_dict(limits[step])
