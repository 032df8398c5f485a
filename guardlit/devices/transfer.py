"""Asynchronous copies to a GPU, and trajectories stored on the device or in host memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guardlit.types import Trajectory

Place = Literal["device", "host"]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device; to a GPU from pinned memory, asynchronously."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


class Trajectories:
    """A round's states and optionally velocities, n rows of (S, C, H, W) float32.

    On the `host` they leave the device's memory to the network. If the device is a GPU, that memory is pinned, and the
    rows of a micro-batch are copied while the GPU still computes on the previous one.

    Args:
        latents: x_t before each trained step, (n, S, C, H, W).
        velocity: the old policy's velocity there, of the same shape; None if it is not needed.
        device: where they are used.
        place: where they are stored.
    """

    def __init__(self, latents: Tensor, velocity: Tensor | None, device: torch.device, place: Place) -> None:
        self.device, self.place = device, place
        self.latents = self._stored(latents)
        self.velocity = None if velocity is None else self._stored(velocity)

    @classmethod
    def room(cls, rows: int, first: Trajectory, place: Place) -> Trajectories:
        """Allocate the trajectories of a round in one block: concatenating batches would hold them twice.

        Args:
            rows: n.
            first: a batch of the rollout, on the device where it is used; not stored.
            place: where the trajectories are stored.
        """
        device = first.latents.device
        here = torch.device("cpu") if place == "host" else device
        pinned = place == "host" and device.type == "cuda"

        def empty(like: Tensor) -> Tensor:
            return torch.empty(rows, *like.shape[1:], dtype=like.dtype, device=here, pin_memory=pinned)

        return cls(empty(first.latents), None if first.velocity is None else empty(first.velocity), device, place)

    def _stored(self, table: Tensor) -> Tensor:
        if self.place == "device":
            return table.to(self.device)
        table = table.cpu()
        return table.pin_memory() if self.device.type == "cuda" and not table.is_pinned() else table

    def put(self, first: int, drawn: Trajectory) -> None:
        """Store a batch as the rows from `first` on."""
        rows = slice(first, first + len(drawn.latents))
        self.latents[rows] = drawn.latents
        if self.velocity is not None and drawn.velocity is not None:
            self.velocity[rows] = drawn.velocity

    def take(self, index: Tensor, here: Tensor) -> tuple[Tensor, Tensor | None]:
        """States and velocities of B transitions, (B, C, H, W) on the device.

        Args:
            index: rows and slots, (2, B) int64 on the CPU.
            here: the same on the device.
        """
        found = [None if table is None else self._rows(table, index, here) for table in (self.latents, self.velocity)]
        assert found[0] is not None
        return found[0], found[1]

    def _rows(self, table: Tensor, index: Tensor, here: Tensor) -> Tensor:
        if self.place == "device":
            return table[here[0], here[1]]
        flat = index[0] * table.shape[1] + index[1]
        out = torch.empty(len(flat), *table.shape[2:], dtype=table.dtype, pin_memory=self.device.type == "cuda")
        return to_device(torch.index_select(table.flatten(0, 1), 0, flat, out=out), self.device)
