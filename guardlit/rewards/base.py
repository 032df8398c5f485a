"""What a reward is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from guardlit.types import RewardRequest, RewardResult


class Scorer(ABC):
    """Scores images; a proxy reward when trained on, a gold score when only watched.

    A scorer is no `nn.Module`: it must stay out of checkpoints, optimizers, EMA and `.train()`.
    Weights load in `setup`, never in `__init__` or at import, so that a configuration parses in milliseconds.
    """

    name: str = ""
    """Column name in logs and tables; the class name in lower case unless set."""

    background: bool = False
    """Whether `score` may run in a side thread while the policy draws the next images: true for what waits on a server
    or on processes of its own, and computes nothing with torch in this process."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.__dict__.get("name"):
            cls.name = cls.__name__.lower()

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term in `RewardResult.details`; empty for a scorer with one value."""
        return {}

    @property
    def provenance(self) -> Mapping[str, str]:
        """What decides the values: scorer, weights with their SHA-256, options. Complete after `setup`."""
        return {"scorer": self.name}

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:  # noqa: B027 - optional hook
        """Raise `ValueError` when this prompt can never be scored (no quoted text, no metadata, ...)."""

    def weight_bytes(self) -> int | None:
        """Bytes of weights that `setup` loads to the policy's device, found without loading any; None if not known."""
        return 0 if self.background else None

    @abstractmethod
    def setup(self, device: torch.device) -> None:
        """Load weights to a device. Called once before the first score; raises `GuardlitError` on bad files."""

    @abstractmethod
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images: values (B,) raw, in the scorer's own unit. Never touches the global random state."""

    def result(self, values: Tensor, **details: Tensor) -> RewardResult:
        """Wrap raw scores (B,) and further named ones; NaN and infinity become invalid."""
        return RewardResult.from_values(values, details=details, provenance=self.provenance)

    def close(self) -> None:  # noqa: B027 - optional hook
        """Give back what `setup` took beside memory: processes, connections. `setup` may be called again after it."""
