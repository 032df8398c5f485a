"""The charts of TensorBoard's tab Custom Scalars: several keys in one chart, in the order in which to read them."""

from __future__ import annotations

from collections.abc import Iterable

import lightning.pytorch as pl
from guardlit_callbacks import GradientNorm, KLFromBase, RatioDistribution
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

FROM_BASE: dict[str, list[object]] = {"square root of the KL from the base": ["Multiline", [r"^kl/sqrt_from_base$"]]}
"""A chart of `drift`, with `KLFromBase`."""

PER_STEP: dict[type[pl.Callback], tuple[str, ...]] = {
    RatioDistribution: ("ratio/log_ratio/mean", "ratio/log_ratio/std"),
    GradientNorm: ("gradient/velocity", "gradient/parameters"),
    KLFromBase: ("kl/from_base",),
}
"""Keys of charts with one line a denoising step, by the callback that logs each step with `per_step`."""


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
    """Writes the layout of TensorBoard's tab Custom Scalars, once, where TensorBoard logs."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        log_layout(trainer, layout(trainer.callbacks))  # type: ignore[attr-defined]
