"""Charts of several keys, in the order in which to read them: TensorBoard's tab Custom Scalars, W&B's custom charts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
from guardlit_callbacks import GradientNorm, KLFromBase, RatioDistribution
from guardlit_callbacks.tools.logging import log_layout, log_layout_charts, takes_charts
from guardlit_callbacks.tools.run_files import ReportError, read_table
from lightning.pytorch.utilities import rank_zero_warn

LAYOUT: dict[str, dict[str, list[object]]] = {
    "proxy and gold": {
        "proxy reward": ["Multiline", [r"^average_reward/.*", r"^val/reward$"]],
        "gold average, 1 = base": ["Margin", ["gold/average", "gold/average_low", "gold/average_high"]],
        "gold scores": ["Multiline", [r"^gold/(?!average|proxy).*"]],
    },
    "ratio": {
        "clip fraction": ["Multiline", [r"^train/clip_(above|below|off_policy)$", r"^ratio/clip_fraction$"]],
        "largest abs(mean) / std of a step": ["Multiline", [r"^ratio/[a-z_]+/max_shift$"]],
        "ratio - 1": ["Multiline", [r"^train/ratio_(mean|std)$"]],
    },
    "gradient": {
        "norm": ["Multiline", [r"^train/grad_norm$", r"^gradient/norm_(before|after)_clipping$"]],
        "largest over smallest step": ["Multiline", [r"^gradient/[a-z]+/max_over_min$"]],
    },
    "drift": {"over the first validation": ["Multiline", [r"^drift/[a-z_]+_ratio$"]]},
    "time": {"seconds of a round": ["Multiline", [r"^time/[a-z_]+_s$"]]},
}
"""Category -> chart -> its kind, and the keys of its lines."""

FROM_BASE: dict[str, list[object]] = {"square root of the KL from the base": ["Multiline", [r"^kl/sqrt_from_base$"]]}
"""A chart of `drift`, with `KLFromBase`."""

PER_STEP: dict[type[pl.Callback], tuple[str, ...]] = {
    RatioDistribution: ("ratio/log_ratio/mean", "ratio/log_ratio/std"),
    GradientNorm: ("gradient/velocity", "gradient/parameters"),
    KLFromBase: ("kl/from_base",),
}
"""Keys of charts with one line a denoising step, by the callback that logs each step with `per_step`."""


LONGER = 1.25
"""By which factor a run grows until its custom charts are logged again."""


def layout(callbacks: Iterable[object]) -> dict[str, dict[str, list[object]]]:
    """The charts of a run with these callbacks."""
    given = list(callbacks)
    found = dict(LAYOUT)
    if any(isinstance(callback, KLFromBase) for callback in given):
        found["drift"] = LAYOUT["drift"] | FROM_BASE
    logs = {kind for kind in PER_STEP for c in given if isinstance(c, kind) and getattr(c, "per_step", False)}
    keys = [key for kind, keys in PER_STEP.items() if kind in logs for key in keys]
    steps: dict[str, list[object]] = {f"{key}/tTT": ["Multiline", [rf"^{key}/t\d+$"]] for key in keys}
    return found | ({"denoising steps": steps} if steps else {})


class Dashboard(pl.Callback):
    """Gives loggers the charts of `layout`: TensorBoard the layout of its tab Custom Scalars, W&B custom charts.

    TensorBoard draws them from what is logged, W&B from a table. So W&B's are logged again whenever the run
    is a quarter longer than the last time, and at its end: all of them together are a few times the last.
    """

    def __init__(self) -> None:
        self._first = self._charted = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the layout."""
        self._first = trainer.current_epoch
        self._charted = 0
        log_layout(trainer, layout(trainer.callbacks))  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the charts of the rounds so far, if they are due."""
        if trainer.current_epoch - self._first >= max(1, self._charted * LONGER):
            self._chart(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the charts of the run."""
        self._chart(trainer)

    def _chart(self, trainer: pl.Trainer) -> None:
        self._charted = trainer.current_epoch - self._first
        if not trainer.is_global_zero or not takes_charts(trainer) or trainer.log_dir is None:
            return
        for logger in trainer.loggers:
            logger.save()
        try:
            table = read_table(Path(trainer.log_dir, "metrics.csv"))
        except ReportError as error:  # a callback of the user's may log what is no number
            rank_zero_warn(f"no charts are logged: {error}")
            return
        log_layout_charts(trainer, layout(trainer.callbacks), table, trainer.global_step)  # type: ignore[attr-defined]
