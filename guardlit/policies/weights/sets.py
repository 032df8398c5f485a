"""The interface of a policy's weight sets: what trains, what sampled the round, the reference, and the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from guardlit.policies.base import WeightSet


class WeightSets(Protocol):
    """Switches between the weight sets of one network, which may be sharded after the object is made."""

    def make_copies(self) -> None:
        """Copy the weights that the other sets start from, before training changes any."""

    def using(self, weights: WeightSet) -> AbstractContextManager[None]:
        """See `FlowPolicy.using`."""

    def refresh_old(self) -> None:
        """See `FlowPolicy.refresh_old`."""

    def old_state(self) -> dict[str, Tensor]:
        """See `FlowPolicy.old_state`."""

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FlowPolicy.load_old_state`."""

    def renew_reference(self) -> None:
        """See `FlowPolicy.renew_reference`."""

    def reference_state(self) -> dict[str, Tensor]:
        """See `FlowPolicy.reference_state`."""

    def load_reference_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FlowPolicy.load_reference_state`."""


@contextmanager
def without_gradients() -> Iterator[None]:
    """Disable gradients, and clear autocast's cache: its half-precision copies belong to one weight set."""
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()
