"""Collectives of the callbacks; every function must be called on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is rank 0, or the only process."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def gather_objects(value: T) -> list[T]:
    """`value` of every rank, in rank order, on every rank; one process gets its own back. Keep tensors on the CPU."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def distinct(numbers: Sequence[int]) -> list[int]:
    """Where each number stands first, in their rising order: distributed samplers deal some samples out twice."""
    first: dict[int, int] = {}
    for place, number in enumerate(numbers):
        first.setdefault(number, place)
    return [first[number] for number in sorted(first)]
