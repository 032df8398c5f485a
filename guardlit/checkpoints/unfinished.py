"""The update in progress when a checkpoint is written: its gradients and outputs so far, by rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from guardlit_callbacks.distributed.sharded import is_sharded, on_first, reshard, shard_like
from torch import Tensor, nn

from guardlit.processes.world import World

Outputs = Mapping[str, Tensor]
"""What a micro-batch leaves: (B,) tensors, and `loss` ()."""


def unfinished_update(module: nn.Module, outputs: Sequence[Outputs], world: World) -> dict[str, Any]:
    """Gradients and outputs of an update's micro-batches so far. Collective: every rank must call it.

    Args:
        module: with the gradients.
        outputs: of the micro-batches so far; none where no update is in progress.
        world: of the run.

    Returns:
        `gradients` and `outputs`, lists by rank, or nothing. Sharded gradients are averages over the ranks already:
        their list has one entry.
    """
    if not outputs:
        return {}
    reshard(module)
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    gradients = on_first(found.items())
    by_rank = world.gather_objects([{k: v.cpu() for k, v in o.items()} for o in outputs])
    return {
        "gradients": [gradients] if is_sharded(found) else world.gather_on_first(gradients),
        "outputs": by_rank,
    }


def outputs_of(part: Mapping[str, Any], rank: int, world_size: int) -> list[dict[str, Tensor]]:
    """One rank's outputs of an unfinished update, also where the checkpoint has another world size.

    Args:
        part: guardlit's part of a checkpoint.
        rank: of this process.
        world_size: of the run that resumes.

    Returns:
        Outputs by micro-batch, or, for another world size, all as one.
    """
    by_rank = part.get("outputs", [])
    if len(by_rank) == world_size or not by_rank:
        return list(by_rank[rank]) if by_rank else []

    def own(key: str) -> Tensor:
        # micro-batch by micro-batch, and in it row q of a rank at position q * world_size + rank
        batches = zip(*by_rank, strict=True)
        rows = torch.cat([torch.stack([o[key] for o in batch], dim=-1).flatten() for batch in batches])
        return rows.mean() if key == "loss" else rows[rank::world_size]

    return [{key: own(key) for key in by_rank[0][0]}]


def gradients_of(part: Mapping[str, Any], rank: int, world_size: int, sharded: bool) -> dict[str, Tensor]:
    """One rank's gradients of an unfinished update; their average where the checkpoint has another world size.

    Args:
        part: guardlit's part of a checkpoint.
        rank: of this process.
        world_size: of the run that resumes.
        sharded: whether gradients are averages over all ranks.
    """
    by_rank = part.get("gradients", [])
    if len(by_rank) == world_size and not sharded:
        return dict(by_rank[rank])
    return {name: torch.stack([g[name] for g in by_rank]).mean(0) for name in (by_rank or [{}])[0]}


def restore_gradients(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    """Assign gradients to parameters by name, on the parameters' device and sharded as they are."""
    for name, gradient in gradients.items():
        parameters[name].grad = shard_like(gradient, parameters[name])
