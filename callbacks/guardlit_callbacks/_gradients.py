"""Gradients as the optimizer is about to see them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
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
