"""Noise that is a function of its place: (seed, round, image, step), never of a generator's history.

So a run draws the same noise on any number of processes, and a resumed run needs no random state.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

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

    def draw(self, samples: Sequence[int], steps: Sequence[int] | int) -> Tensor:
        """Noise of images in the round at their steps, drawn on the CPU; (B, C, H, W) float32."""
        steps = [steps] * len(samples) if isinstance(steps, int) else steps
        out = torch.empty(len(samples), *self._shape, dtype=torch.float32)
        generator = torch.Generator()
        for row, sample, step in zip(out, samples, steps, strict=True):
            generator.manual_seed(mix(self._seed, self._round, sample, step))
            row.normal_(generator=generator)
        return out
