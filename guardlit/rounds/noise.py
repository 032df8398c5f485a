"""Noise as a function of (seed, round, sample, step), independent of any generator's history.

So a run draws the same noise at any world size, and a resumed run needs no random state.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from guardlit.devices.transfer import to_device

Place = tuple[Sequence[int], int]
"""Samples of a round, and the step that they are at."""
INITIAL = -1
"""The step index of a sample's initial noise x_1."""
EVALUATION = -1
"""The round index of noise drawn for fixed evaluation images."""


def mix(*numbers: int) -> int:
    """A 63-bit seed from integers; any change of any of them gives an unrelated one."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class NoiseSource:
    """Standard normal noise for the images of one round.

    Args:
        seed: of the run.
        round: index of the round.
        shape: of one sample's latents, (C, H, W).
    """

    def __init__(self, seed: int, round: int, shape: Sequence[int]) -> None:
        self._seed, self._round, self._shape = seed, round, tuple(shape)

    def draw(self, samples: Sequence[int], steps: Sequence[int] | int, pinned: bool = False) -> Tensor:
        """Noise of images in the round at their steps, drawn on the CPU; (B, C, H, W) float32."""
        steps = [steps] * len(samples) if isinstance(steps, int) else steps
        out = torch.empty(len(samples), *self._shape, dtype=torch.float32, pin_memory=pinned)
        generator = torch.Generator()
        for row, sample, step in zip(out, samples, steps, strict=True):
            generator.manual_seed(mix(self._seed, self._round, sample, step))
            row.normal_(generator=generator)
        return out

    def ahead(self, places: Sequence[Place], device: torch.device, threaded: bool | None = None) -> Iterator[Tensor]:
        """The noise of one place after another on a device, (B, C, H, W) float32.

        For a GPU another thread draws the next place's noise into pinned memory while the device computes. On a CPU a
        second computing thread would slow down the first.

        Args:
            places: samples and their step.
            device: where the noise is needed.
            threaded: whether another thread draws; null for GPUs only.
        """
        pinned = device.type == "cuda"
        if not (pinned if threaded is None else threaded):
            yield from (to_device(self.draw(samples, step), device) for samples, step in places)
            return
        with ThreadPoolExecutor(1, "noise", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            draws = (pool.submit(self.draw, samples, step, pinned) for samples, step in places)
            following = next(draws, None)
            while following is not None:
                drawn, following = following.result(), next(draws, None)
                yield to_device(drawn, device)
