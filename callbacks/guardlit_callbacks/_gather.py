"""Collectives of the callbacks; every function must be called on all ranks."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_objects(value: T) -> list[T]:
    """`value` of every rank, in rank order, on every rank; one process gets its own back. Keep tensors on the CPU."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]
