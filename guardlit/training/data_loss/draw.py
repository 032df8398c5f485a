"""Which pairs an update has, at which timesteps and with which noise: pure functions of seed, round and update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guardlit.devices.transfer import to_device
from guardlit.ratios import mean_of_elements, velocity_difference
from guardlit.rounds.noise import NoiseSource, mix
from guardlit.rounds.plan import walk
from guardlit.types import Conditioning

_PAIRS, _TIMES, _NOISE = 4, 5, 6  # what a draw is for: keeps their seeds apart
EDGE = 1e-9
"""Quantiles of a distribution without bounds are taken from [EDGE, 1 - EDGE]."""


@dataclass(frozen=True)
class DataDraw:
    """The draws of a run.

    Attributes:
        seed: of the run.
        available: pairs in the data set.
        pairs: N, rows of an update on all ranks.
        updates: of a round.
    """

    seed: int
    available: int
    pairs: int
    updates: int

    def indices(self, round: int, update: int, rows: Sequence[int]) -> list[int]:
        """Which pairs some rows of an update are, by index: all come up equally often."""
        first = (round * self.updates + update) * self.pairs
        return walk([first + row for row in rows], self.available, mix(self.seed, _PAIRS))

    def fixed(self, rows: Sequence[int]) -> list[int]:
        """Pairs of the rows that a run measures over and over: those of its first update."""
        return self.indices(0, 0, rows)

    def quantiles(self, round: int, update: int, rows: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), (n,) float64, one in each N-th part over the rows of an update.

        Each is uniform by itself; spread evenly, the loss of an update depends less on the draw.
        """
        generator = torch.Generator().manual_seed(mix(mix(self.seed, _TIMES), round, update))
        parts = torch.randperm(self.pairs, generator=generator)
        inside = torch.rand(self.pairs, generator=generator, dtype=torch.float64)
        spread: Tensor = (parts + inside) / self.pairs
        return spread[list(rows)]

    def noise(self, round: int, update: int, rows: Sequence[int], shape: Sequence[int], pinned: bool = False) -> Tensor:
        """Standard normal noise of some rows of an update, (n, C, H, W) float32."""
        return NoiseSource(mix(self.seed, _NOISE), round, shape).draw(rows, update, pinned)


def at_steps(quantiles: Tensor, sigmas: Tensor) -> Tensor:
    """Sigmas of trained steps, each as probable as the others, (n,) float64.

    Args:
        quantiles: in [0, 1), (n,).
        sigmas: of the steps, (S,).
    """
    return sigmas[(quantiles * len(sigmas)).long()]


def logit_normal(quantiles: Tensor) -> Tensor:
    """Times whose logit is standard normal, (n,) float64: `lognorm(0, 1)` of arXiv 2403.03206, section 3.1."""
    normal: Tensor = torch.special.ndtri(quantiles.clamp(EDGE, 1 - EDGE))
    return normal.sigmoid()


@dataclass(frozen=True)
class DataRows:
    """Pairs at their timesteps.

    Attributes:
        latents: clean latents x_0, (n, C, H, W) float32.
        noise: standard normal, (n, C, H, W) float32.
        sigma: the timesteps in [0, 1], (n,) float32.
        conditioning: the prompts' embeddings, leading dimension n.
    """

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.sigma)

    @classmethod
    def blank(cls, rows: int, shape: Sequence[int], conditioning: Conditioning, device: torch.device) -> DataRows:
        """Rows without content, to measure cost; the conditioning is that of any rows."""
        latents = torch.zeros(rows, *shape, device=device)
        table = {name: value[:1].expand(rows, *value.shape[1:]) for name, value in conditioning.items()}
        return cls(latents, torch.zeros_like(latents), torch.ones(rows, device=device), table)

    def to(self, device: torch.device) -> DataRows:
        """The rows on a device; the conditioning is there already."""
        latents, noise, sigma = (to_device(value, device) for value in (self.latents, self.noise, self.sigma))
        return DataRows(latents, noise, sigma, self.conditioning)

    @property
    def noisy(self) -> Tensor:
        """x_t = (1 - sigma) x_0 + sigma noise, (n, C, H, W)."""
        sigma = self.sigma.view(-1, 1, 1, 1)
        return (1 - sigma) * self.latents + sigma * self.noise

    def losses(self, velocity: Tensor) -> Tensor:
        """mean((v - (noise - x_0))^2) over the elements of each row, (n,) float64 with the velocity's gradient."""
        return mean_of_elements(velocity_difference(velocity, self.noise - self.latents).square())
