"""The charts of TensorBoard's tab Custom Scalars: several keys in one chart, in the order in which to read them."""

from __future__ import annotations

import lightning.pytorch as pl
from guardlit_callbacks.tools.logging import log_layout

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

PER_STEP: dict[str, dict[str, list[object]]] = {
    "denoising steps": {
        f"{key}/tTT": ["Multiline", [rf"^{key}/t\d+$"]]
        for key in ("ratio/log_ratio/mean", "ratio/log_ratio/std", "gradient/velocity", "gradient/parameters")
    }
}
"""Charts with one line a denoising step, for callbacks that log each."""


class Dashboard(pl.Callback):
    """Writes the layout of TensorBoard's tab Custom Scalars, once, where TensorBoard logs."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        log_layout(trainer, LAYOUT | (PER_STEP if any(getattr(c, "per_step", False) for c in callbacks) else {}))
