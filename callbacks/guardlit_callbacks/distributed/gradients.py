"""Norms of gradients as the optimizer is about to see them, sharded (FSDP2) or not."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import ismethod
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer

if TYPE_CHECKING:
    from guardlit_callbacks.tools.lightning import LightningModule


class _Known(NamedTuple):
    """A total norm, and the update and gradients that it belongs to."""

    global_step: int
    gradients: list[tuple[int, int]]  # identity and version of each
    norm: Tensor


_known: WeakKeyDictionary[Optimizer, _Known] = WeakKeyDictionary()


def gradient_norm(pl_module: LightningModule) -> Tensor:
    """The 2-norm of all gradients before clipping, a float32 scalar, computed once an update. Collective if sharded.

    Call it in `on_before_optimizer_step`. If the module has a method `gradient_norm()`, its result is taken. Otherwise
    callers share one norm for as long as no gradient has changed.
    """
    own = getattr(pl_module, "gradient_norm", None)
    if ismethod(own):  # and not a metric of that name
        norm: Tensor = own()
        return norm
    trainer = pl_module.trainer
    gradients = [p.grad for p in trained_parameters(trainer.optimizers) if p.grad is not None]
    state = [(id(gradient), gradient._version) for gradient in gradients]
    known = _known.get(trainer.optimizers[0])
    if known is None or (known.global_step, known.gradients) != (trainer.global_step, state):
        known = _known[trainer.optimizers[0]] = _Known(trainer.global_step, state, total_norm(gradients))
    return known.norm


def trained_parameters(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """The parameters that the optimizers train; faster to list than to find in the module's tree."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def total_norm(gradients: Iterable[Tensor | None]) -> Tensor:
    """The 2-norm of all gradients, a float32 scalar. Collective if they are sharded."""
    sharded: list[Tensor] = []
    full: list[Tensor] = []
    for gradient in gradients:
        if gradient is not None:
            (sharded if isinstance(gradient, DTensor) else full).append(gradient)
    norms = [torch.nn.utils.get_total_norm(group).float() for group in (sharded, full) if group]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def zero_fraction(gradients: Iterable[Tensor | None]) -> Tensor:
    """Fraction of all entries that are exactly 0, a float32 scalar; never waits for a GPU. Collective if sharded."""
    present = [gradient for gradient in gradients if gradient is not None]
    sharded = [gradient for gradient in present if isinstance(gradient, DTensor)]
    counts = [g.count_nonzero() for g in present if not isinstance(g, DTensor)]
    if sharded:
        mine = torch.stack([g.to_local().count_nonzero() for g in sharded]).sum()
        parts = [Partial() if place.is_shard() else Replicate() for place in sharded[0].placements]
        counts.append(DTensor.from_local(mine, sharded[0].device_mesh, parts).full_tensor())
    entries = sum(gradient.numel() for gradient in present)
    return 1 - torch.stack(counts).sum() / entries if entries else torch.zeros(())
