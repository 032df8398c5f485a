"""What an update's micro-batches said, as the scalars of one log line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]


def update_metrics(outputs: Sequence[Outputs]) -> dict[str, Tensor]:
    """Scalars of one optimizer step from the outputs of its micro-batches; all stay on their device.

    Args:
        outputs: `training_step`'s dictionaries, (B,) tensors each but for `loss`.

    Returns:
        `train/loss`; `train/ratio_mean` and `train/ratio_std`, of ratio - 1; `train/clip_above` and
        `train/clip_below`, shares of the transitions; `train/advantage_abs`; `train/kl` where there is one.
    """
    log_ratio = torch.cat([o["log_ratio"] for o in outputs]).double()
    clipped = torch.cat([o["clipped"] for o in outputs])
    deviation = torch.expm1(log_ratio)
    metrics = {
        "train/loss": torch.stack([o["loss"] for o in outputs]).mean(),
        "train/ratio_mean": deviation.mean(),
        "train/ratio_std": deviation.std(correction=0),
        "train/clip_above": (clipped & (log_ratio > 0)).double().mean(),
        "train/clip_below": (clipped & (log_ratio < 0)).double().mean(),
        "train/advantage_abs": torch.cat([o["advantage"] for o in outputs]).abs().mean(),
    }
    if "kl" in outputs[0]:
        metrics["train/kl"] = torch.cat([o["kl"] for o in outputs]).mean()
    return metrics
