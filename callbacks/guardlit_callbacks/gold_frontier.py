"""The frontier of a run while it trains: its gold Average against the proxy and against a logged distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guardlit_callbacks.figures.frontier import run_frontier_figure
from guardlit_callbacks.frontier import Curve
from guardlit_callbacks.tools.lightning import Trainer
from guardlit_callbacks.tools.logging import log_figure, takes_images

KEY = "gold/frontier"


class LiveFrontier:
    """Keeps the distance of each evaluation, and draws the run's path for loggers that take figures.

    Args:
        distance: logged key of the distance from the base; None for none.
    """

    def __init__(self, distance: str | None) -> None:
        self.distance = distance
        self.distances: dict[int, float] = {}
        """The distance by optimizer step."""

    def log(self, trainer: Trainer, history: Sequence[Mapping[str, float]]) -> None:
        """Reads the distance of the last evaluation, and logs the figure if there are two or more evaluations.

        Args:
            trainer: after its callbacks have logged the validation.
            history: `GoldScore`'s rows, one an evaluation.
        """
        last = int(history[-1]["step"])
        self.distances = {step: value for step, value in self.distances.items() if step < last}
        if self.distance is not None and self.distance in trainer.callback_metrics:
            self.distances[last] = float(trainer.callback_metrics[self.distance])
        if len(history) < 2 or not trainer.is_global_zero or not takes_images(trainer):
            return
        if (found := self.curve(history)).axes:
            log_figure(trainer, KEY, run_frontier_figure(found), last)

    def curve(self, history: Sequence[Mapping[str, float]]) -> Curve:
        """The path so far."""
        step = np.array([int(row["step"]) for row in history])
        proxy = np.array([row.get("proxy", np.nan) for row in history])
        distance = np.array([self.distances.get(int(s), np.nan) for s in step])
        axes = {"proxy": proxy, "sqrt_kl": distance}
        shown = {name: values[None] for name, values in axes.items() if np.isfinite(values).sum() > 1}
        return Curve(step, np.array([[row["average"] for row in history]]), shown)

    def state_dict(self) -> dict[str, Any]:
        """The distances so far; equal on every rank."""
        return {"distances": self.distances}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores them; a checkpoint of an older version has none."""
        self.distances = dict(state.get("distances", {}))
