"""What all processes must do together, so that none is left waiting for the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from guardlit_callbacks.distributed.gather import gather_objects
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guardlit.devices.storage import is_wrapper
from guardlit.errors import GuardlitError

T = TypeVar("T")

LARGEST = ("_p50", "_p95", "_max", "_share", "_s", "_ms")
"""Endings of counters that cannot be added up: a statistic or a unit."""

_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


def largest(trainer: pl.Trainer, mine: int) -> int:
    """The largest of all processes' numbers; to be called by all.

    It goes from CPU to CPU: asked by NCCL, the question would wait for all that the GPU still has to do.
    """
    if trainer.world_size == 1:
        return mine
    number = torch.tensor(mine)
    dist.all_reduce(number, dist.ReduceOp.MAX, group=_on_cpus(trainer))
    return int(number)


def _on_cpus(trainer: pl.Trainer) -> dist.ProcessGroup:
    """A gloo group of all processes, made when it is first needed, with the time-out of the strategy's own one."""
    world = dist.group.WORLD
    assert world is not None
    if world not in _groups:
        timeout = getattr(trainer.strategy, "_timeout", None)
        _groups[world] = dist.new_group(backend="gloo", timeout=timeout)  # type: ignore[assignment]
    return _groups[world]


def gather_on_first(trainer: pl.Trainer, mine: T) -> list[T]:
    """All processes' values, by process, on the first one; an empty list elsewhere; to be called by all.

    They go from CPU to CPU: by NCCL, all of them would have to fit on the first process's GPU.
    """
    if trainer.world_size == 1:
        return [mine]
    values: list[T | None] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    dist.gather_object(mine, values, group=_on_cpus(trainer))
    return [] if values is None else values  # type: ignore[return-value]


def keep_buffers(strategy: Any) -> None:
    """Have DDP not send the policy's buffers round: they never change, and position tables are hundreds of megabytes.

    Args:
        strategy: of a Trainer that has not begun; one that was told what to do with buffers does that.
    """
    if isinstance(strategy, DDPStrategy):
        strategy._ddp_kwargs.setdefault("broadcast_buffers", False)


def keep_quantized(module: nn.Module) -> None:
    """Have DDP not send frozen weights round that are made of several tensors: it cannot, and all processes read them.

    Args:
        module: that DDP will be put around.
    """
    names = [n for n, p in module.named_parameters() if not p.requires_grad and is_wrapper(p)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]


def raise_on_all(trainer: pl.Trainer, error: GuardlitError | None) -> None:
    """Raise the first process's error on every one of them, if any has one; to be called by all."""
    if not largest(trainer, int(error is not None)):
        return
    first = next(e for e in gather_objects(error) if e is not None)
    first.on_all_ranks = True
    raise first


def sum_counters(mine: Mapping[str, float]) -> dict[str, float]:
    """Counters of all processes as one: sums, or the largest for names with an ending of `LARGEST`."""
    total: dict[str, float] = {}
    for counters in gather_objects(dict(mine)):
        for name, value in counters.items():
            merge = max if name.endswith(LARGEST) else float.__add__
            total[name] = merge(total[name], float(value)) if name in total else float(value)
    return total
