"""Metrics of an update and of a round, one log line each."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]


def update_metrics(outputs: Sequence[Outputs], norm: Tensor, skipped: int) -> dict[str, Tensor | float]:
    """Scalars of one optimizer step from the outputs of its micro-batches; all stay on their device.

    Args:
        outputs: `training_step`'s dictionaries, (B,) tensors each but for `loss`.
        norm: of the gradient, before clipping, ().
        skipped: updates of the run so far that were skipped.

    Returns:
        `train/loss`; `train/ratio_mean` and `train/ratio_std`, of ratio - 1; `train/clip_above` and
        `train/clip_below`, fractions of the transitions; `train/advantage_abs`; `train/kl` where there is one;
        `train/grad_norm`; `train/skipped_updates`.
    """
    log_ratio = torch.cat([o["log_ratio"] for o in outputs]).double()
    clipped = torch.cat([o["clipped"] for o in outputs])
    deviation = torch.expm1(log_ratio)
    metrics: dict[str, Tensor | float] = {
        "train/loss": torch.stack([o["loss"] for o in outputs]).mean(),
        "train/ratio_mean": deviation.mean(),
        "train/ratio_std": deviation.std(correction=0),
        "train/clip_above": (clipped & (log_ratio > 0)).double().mean(),
        "train/clip_below": (clipped & (log_ratio < 0)).double().mean(),
        "train/advantage_abs": torch.cat([o["advantage"] for o in outputs]).abs().mean(),
        "train/grad_norm": norm,
        "train/skipped_updates": float(skipped),
    }
    if "kl" in outputs[0]:
        metrics["train/kl"] = torch.cat([o["kl"] for o in outputs]).mean()
    return metrics


def finish_round(metrics: MutableMapping[str, float], collected: float, images: int, index: int) -> None:
    """Add the metrics that are known at a round's end.

    Args:
        metrics: with `time/rollout_s` and `time/reward_s`; gets `time/update_s`, `time/images_per_s` and `round`, the
            round's number from 1.
        collected: when the updates began, by `time.perf_counter`.
        images: of the round, on all ranks.
        index: of the round.
    """
    metrics["time/update_s"] = time.perf_counter() - collected
    seconds = metrics["time/rollout_s"] + metrics["time/reward_s"] + metrics["time/update_s"]
    metrics.update({"time/images_per_s": images / seconds, "round": float(index + 1)})
