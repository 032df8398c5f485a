"""Gradients as the optimizer is about to see them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer


def trained(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """What the optimizers train; walking through the module's tree for them would cost more than their norm."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """The 2-norm of all gradients together, a float32 scalar; a collective where they are sharded."""
    sharded: list[Tensor] = []
    whole: list[Tensor] = []
    for gradient in gradients:
        if gradient is not None:
            (sharded if isinstance(gradient, DTensor) else whole).append(gradient)
    norms = [torch.nn.utils.get_total_norm(group).float() for group in (sharded, whole) if group]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def zero_share(gradients: Iterable[Tensor | None]) -> Tensor:
    """The share of exact zeros among all entries, a float32 scalar; waits for no GPU; a collective where sharded."""
    there = [gradient for gradient in gradients if gradient is not None]
    sharded = [gradient for gradient in there if isinstance(gradient, DTensor)]
    counts = [g.count_nonzero() for g in there if not isinstance(g, DTensor)]
    if sharded:
        mine = torch.stack([g.to_local().count_nonzero() for g in sharded]).sum()
        parts = [Partial() if place.is_shard() else Replicate() for place in sharded[0].placements]
        counts.append(DTensor.from_local(mine, sharded[0].device_mesh, parts).full_tensor())
    entries = sum(gradient.numel() for gradient in there)
    return 1 - torch.stack(counts).sum() / entries if entries else torch.zeros(())
