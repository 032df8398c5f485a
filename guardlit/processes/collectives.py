"""Collectives of a Trainer's ranks, for callers that have no `World` yet."""

from __future__ import annotations

from typing import TypeVar

import lightning.pytorch as pl

from guardlit.errors import GuardlitError
from guardlit.processes.world import World

T = TypeVar("T")


def largest(trainer: pl.Trainer, mine: int) -> int:
    """The largest number of all ranks. Collective: every rank must call it."""
    return World.of(trainer).largest(mine)


def gather_on_first(trainer: pl.Trainer, mine: T) -> list[T]:
    """The values of all ranks on rank 0, an empty list elsewhere. Collective: every rank must call it."""
    return World.of(trainer).gather_on_first(mine)


def raise_on_all(trainer: pl.Trainer, error: GuardlitError | None) -> None:
    """Raise the first rank's error on every rank. Collective: every rank must call it."""
    World.of(trainer).raise_on_all(error)
