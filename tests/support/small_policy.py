"""A policy of one number per text: v = scale x + mean of the text's characters; no files, no processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from guardlit.policies.base import FlowPolicy
from guardlit.sde import flow_match_sigmas
from guardlit.types import Conditioning


class SmallPolicy(FlowPolicy):
    """Latents of shape (1, 2, 2); the network is one trained scale.

    Args:
        can_merge: whether it has an adapter that can be merged.
        merge_error: by what merging changes the scale.
        broken: a text whose velocity is NaN.
    """

    def __init__(self, can_merge: bool = False, merge_error: float = 0.0, broken: str | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.old = self.reference = self.base_scale = torch.tensor(0.5)
        self.can_merge, self.merge_error, self.broken = can_merge, merge_error, broken
        self.in_use: list[str] = []
        """The contexts that are entered, outermost first."""
        self.calls: list[tuple[str, ...]] = []
        """The contexts of each call of the network."""

    def load(self, shard: object = None) -> None: ...

    def fingerprint(self) -> dict[str, str]:
        return {"policy": "small"}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return (1, 2, 2)

    def sigmas(self, num_steps: int) -> Tensor:
        return flow_match_sigmas(num_steps)

    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None: ...

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        numbers = [float("nan") if p == self.broken else sum(map(ord, p)) / len(p) / 1000 for p in prompts]
        return {"number": torch.tensor(numbers)}

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        self.calls.append(tuple(self.in_use))
        sets = {"old": self.old, "reference": self.reference, "base": self.base_scale}
        scale = next((scale for name, scale in sets.items() if name in self.in_use), self.scale)
        scale = scale + self.merge_error * ("merged" in self.in_use)
        return scale * latents + conditioning["number"].reshape(-1, 1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        return ((latents.clamp(-2, 2) + 2) * 63).repeat(1, 3, 1, 1).to(torch.uint8)

    @contextmanager
    def _entered(self, name: str) -> Iterator[None]:
        self.in_use.append(name)
        try:
            yield
        finally:
            self.in_use.remove(name)

    def using(self, weights: str) -> AbstractContextManager[None]:
        return self._entered(weights)

    @property
    def mergeable(self) -> bool:
        return self.can_merge

    def merged(self) -> AbstractContextManager[None]:
        return self._entered("merged")

    def refresh_old(self) -> None:
        self.old = self.scale.detach().clone()

    def old_state(self) -> dict[str, Tensor]:
        return {"scale": self.old}

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        self.old = state["scale"]

    def export(self, folder: Path, to: str = "diffusers", merged: bool = False) -> None: ...

    def exported(self, folder: Path) -> AbstractContextManager[None]:
        return self._entered("exported")

    def source(self) -> dict[str, str]:
        return {}
