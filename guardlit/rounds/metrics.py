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

    Logged after each update:

    | key | unit |
    |---|---|
    | `train/loss` | the objective's, with KL penalty and data loss where there are some |
    | `train/ratio_mean`, `train/ratio_std` | mean or standard deviation of ratio - 1 over the update's transitions |
    | `train/clip_above`, `train/clip_below` | of the update's transitions those clipped on that side, 0 to 1 |
    | `train/advantage_abs` | mean size of the advantage, in standard deviations of the reward, or its unit with none |
    | `train/data_loss` | mean flow-matching loss of the update's images, unweighted; with `data_loss` only |
    | `train/kl` | mean divergence from the reference, per latent element, nats if `exact`; with a `kl` penalty only |
    | `train/grad_norm` | norm of the gradient before clipping, loss / parameter |
    | `train/skipped_updates` | updates of the run so far that were skipped |
    """
    log_ratio = torch.cat([o["log_ratio"] for o in outputs]).double()
    above, below = clip_fractions(outputs)
    deviation = torch.expm1(log_ratio)
    metrics: dict[str, Tensor | float] = {
        "train/loss": torch.stack([o["loss"] for o in outputs]).mean(),
        "train/ratio_mean": deviation.mean(),
        "train/ratio_std": deviation.std(correction=0),
        "train/clip_above": above,
        "train/clip_below": below,
        "train/advantage_abs": torch.cat([o["advantage"] for o in outputs]).abs().mean(),
        "train/grad_norm": norm,
        "train/skipped_updates": float(skipped),
    }
    for key in ("kl", "data_loss"):
        if found := [o[key] for o in outputs if key in o]:  # a resumed run may have begun the update without it
            metrics[f"train/{key}"] = torch.cat(found).mean()
    return metrics


def clip_fractions(outputs: Sequence[Outputs]) -> tuple[Tensor, Tensor]:
    """Fractions of an update's transitions that are clipped above and below the range, () each, without masked ones."""
    log_ratio = torch.cat([o["log_ratio"] for o in outputs])
    counts = torch.cat([o["sample_weight"] for o in outputs]) != 0
    clipped = torch.cat([o["clipped"] for o in outputs]) & counts
    number = counts.double().sum().clamp(min=1)
    return (clipped & (log_ratio > 0)).sum() / number, (clipped & (log_ratio < 0)).sum() / number


def off_policy_clip_fraction(by_update: Sequence[Tensor]) -> float | None:
    """The clip fraction that `clip_range: auto` aims at: of a round's updates but the first, which is on-policy.

    Args:
        by_update: fractions of the round's updates so far, above and below together, () each.

    Returns:
        Their mean, 0 to 1; None before the round's second update.
    """
    return float(torch.stack(list(by_update[1:])).mean()) if len(by_update) > 1 else None


def finish_round(
    metrics: MutableMapping[str, float], collected: float, images: int, index: int, clips: Sequence[Tensor]
) -> None:
    """Add the metrics that are known at a round's end.

    Logged at the end of a round:

    | key | unit |
    |---|---|
    | `time/update_s` | s, of all updates of the round |
    | `time/images_per_s` | 1/s, images of the round on all ranks over the time of rollout, reward and updates |
    | `train/clip_off_policy` | clipped fraction of the transitions of all updates of the round but the first, 0 to 1 |
    | `round` | number of the round, from 1 |

    Args:
        metrics: with `time/rollout_s` and `time/reward_s`; completed in place.
        collected: when the updates began, by `time.perf_counter`.
        images: of the round, on all ranks.
        index: of the round, from 0.
        clips: clip fractions of the round's updates, () each.
    """
    metrics["time/update_s"] = time.perf_counter() - collected
    seconds = metrics["time/rollout_s"] + metrics["time/reward_s"] + metrics["time/update_s"]
    metrics.update({"time/images_per_s": images / seconds, "round": float(index + 1)})
    if (clipped := off_policy_clip_fraction(clips)) is not None:
        metrics["train/clip_off_policy"] = clipped
