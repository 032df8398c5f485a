"""Collectives of Python objects; each works in a single process as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_first() -> bool:
    """Whether this process is rank 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def gather_objects(value: T) -> list[T]:
    """The `value` of every rank, in rank order, on every rank. Collective: every rank must call it.

    Args:
        value: any object that can be pickled; keep its tensors on the CPU. A single process gets it back in a list.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered  # type: ignore[return-value]


def interleave(ranks: Sequence[Sequence[T]]) -> list[T]:
    """The samples of all ranks in the order of the data set, of which rank r holds samples r, r + world size, ..."""
    longest = max(len(samples) for samples in ranks)
    return [samples[i] for i in range(longest) for samples in ranks if i < len(samples)]


def distinct(indices: Sequence[int]) -> list[int]:
    """Positions of the first occurrence of each index, by rising index.

    Distributed samplers repeat some samples so that all ranks get equally many.
    """
    first: dict[int, int] = {}
    for position, index in enumerate(indices):
        first.setdefault(index, position)
    return [first[index] for index in sorted(first)]
