"""Scorers that run a network in this process: its device, precision and batch size."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult

Rows = TypeVar("Rows", Tensor, list[str])


@dataclass(frozen=True)
class Placement:
    """Device, precision and batch size of a scorer's network.

    Attributes:
        device: `same` as the policy's, `cpu`, or a GPU such as `cuda:1`.
        dtype: precision of the network; scores are always float32.
        batch_size: images, or texts, per forward pass.
        offload: keep the weights on the CPU and copy them to the device for each request.
    """

    device: str = "same"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: int = 32
    offload: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size of a scorer's placement is {self.batch_size}; it must be at least 1")

    def resolve(self, device: torch.device) -> torch.device:
        """The device, where the policy's is `device`; raises `GuardlitError` for one that this machine lacks."""
        if self.device == "same":
            return device
        try:
            chosen = torch.device(self.device)
        except RuntimeError:
            chosen = None
        if chosen is None or chosen.type not in ("cpu", "cuda"):
            raise GuardlitError(f"placement.device '{self.device}' of a scorer is not one of same, cpu, cuda, cuda:N")
        if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
            raise GuardlitError(
                f"placement.device '{self.device}' of a scorer is not here: torch sees {torch.cuda.device_count()} GPUs"
            )
        return chosen

    def batches(self, total: int) -> list[slice]:
        """Slices of `total` rows, a batch each."""
        return [slice(start, start + self.batch_size) for start in range(0, total, self.batch_size)]


class NetworkScorer(Scorer):
    """A scorer that runs a network in this process.

    A subclass writes `load` and `compute`; this class handles device, precision, batches, offloading and provenance.

    Args:
        placement: device, precision and batch size of the network.
    """

    distinguishes = True
    network: nn.Module
    """What `load` returned, in eval mode and without gradients."""
    device: torch.device
    """Where requests are computed."""

    def __init__(self, placement: Placement = Placement()) -> None:
        self.placement = placement
        self._files: Mapping[str, str] = {}

    @abstractmethod
    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load the network, and whatever else the scorer needs, to the CPU.

        Returns:
            The network in any dtype, and entries of the provenance: names and SHA-256 of the weights.

        Raises:
            GuardlitError: a file is missing, or does not hold the network's weights.
        """

    @abstractmethod
    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B images; the network is on `device`, gradients are off."""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, files, precision."""
        return {"scorer": self.name, **self._files, "dtype": self.placement.dtype}

    def setup(self, device: torch.device) -> None:
        """Load the network to the device of the placement."""
        self.device = self.placement.resolve(device)
        with torch.random.fork_rng(devices=[]):  # some versions draw weights before they load them
            network, self._files = self.load()
        self.network = network.to(DTYPES[self.placement.dtype]).eval().requires_grad_(False)
        if not self.placement.offload:
            self.network.to(self.device)

    @torch.no_grad()
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images, (B,)."""
        with self._on_device() if self.placement.offload else nullcontext():
            return self.compute(request)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Score with a copy on the device; the weights on the CPU stay, so that nothing is copied back."""
        home = self.network
        moved: dict[int, Tensor] = {id(t): nn.Parameter(t.to(self.device), False) for t in home.parameters()}
        moved |= {id(buffer): buffer.to(self.device) for buffer in home.buffers()}
        self.network = copy.deepcopy(home, moved)
        try:
            yield
        finally:
            self.network = home

    def in_batches(self, rows: Rows, embed: Callable[[Rows], Tensor]) -> Tensor:
        """`embed` of all rows, a batch at a time, (len(rows), ...) float32."""
        return torch.cat([embed(rows[batch]).float() for batch in self.placement.batches(len(rows))])

    def once_each(self, prompts: list[str], embed: Callable[[list[str]], Tensor]) -> Tensor:
        """`embed` of each distinct prompt once, repeated by prompt: (B, ...) float32.

        The images of a group have the same prompt, so few prompts are distinct.
        """
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        return self.in_batches(list(rows), embed)[[rows[prompt] for prompt in prompts]]
