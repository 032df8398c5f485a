"""The ranks of a run and the collectives between them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.processes.lightning_internals import collective_timeout

if TYPE_CHECKING:
    import lightning.pytorch as pl

T = TypeVar("T")

_groups: dict[dist.ProcessGroup, dist.ProcessGroup] = {}
"""The gloo group of each default group."""


@dataclass(frozen=True)
class World:
    """A rank among the ranks of a run. Every method is collective: every rank must call it.

    Numbers, flags and objects go from CPU to CPU by gloo: by NCCL they would wait for all work that the GPU still has,
    and gathered objects would have to fit on a GPU. Tensors of `gather` take the run's own backend.

    Attributes:
        rank: of this process, from 0.
        size: number of ranks.
        device: of this rank.
        timeout: of the gloo group; null for torch's own.
    """

    rank: int
    size: int
    device: torch.device
    timeout: timedelta | None = None

    @classmethod
    def of(cls, trainer: pl.Trainer) -> World:
        """The world of a Trainer's strategy."""
        strategy = trainer.strategy
        return cls(trainer.global_rank, trainer.world_size, strategy.root_device, collective_timeout(strategy))

    @classmethod
    def single(cls, device: torch.device | str = "cpu") -> World:
        """A world of one rank."""
        return cls(0, 1, torch.device(device))

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (n, ...) of every rank, (size, n, ...), on the rank's device."""
        if self.size == 1:
            return rows.unsqueeze(0)
        rows = rows.detach().to(self.device).contiguous()
        gathered = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(gathered, rows)
        return torch.stack(gathered)

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, by rank; tensors in them must be on the CPU."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self._cpu_group())
        return values  # type: ignore[return-value]

    def gather_on_first(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[T | None] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, values, group=self._cpu_group())
        return [] if values is None else values  # type: ignore[return-value]

    def largest(self, number: int) -> int:
        """The largest number of all ranks."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._cpu_group())
        return int(found)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on some rank."""
        return bool(self.largest(int(flag)))

    def all(self, flag: bool) -> bool:
        """Whether the flag is true on every rank."""
        return not self.any(not flag)

    def raise_on_all(self, error: GuardlitError | None) -> None:
        """Raise the error of the lowest rank that has one on every rank."""
        if not self.any(error is not None):
            return
        first = next(e for e in self.gather_objects(error) if e is not None)
        first.on_all_ranks = True
        raise first

    def _cpu_group(self) -> dist.ProcessGroup:
        """The gloo group of all ranks, created at its first use."""
        default = dist.group.WORLD
        assert default is not None
        if default not in _groups:
            _groups[default] = dist.new_group(backend="gloo", timeout=self.timeout)  # type: ignore[assignment]
        return _groups[default]
