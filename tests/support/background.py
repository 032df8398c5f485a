"""Scorers that work in a side thread, and fail there in many ways."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from brightness import Brightness

from guardlit.errors import GuardlitError
from guardlit.rewards.base import Scorer
from guardlit.types import Prompt, RewardRequest, RewardResult

Failure = Literal["nan", "first", "raise", "hopeless"]


class Background(Brightness):
    """Mean gray level, scored in a side thread.

    Args:
        fail: a prompt with this text fails.
        how: `nan`; `first`, NaN for the first image that is asked for; `raise` what a library might; or `hopeless`,
            `GuardlitError`, which a retry cannot fix.
        jitter: longest pause before a score, in seconds; random for every request and run.
        rank: of the process that fails; all by default.
    """

    background = True

    def __init__(self, fail: str = "", how: Failure = "nan", jitter: float = 0.0, rank: int | None = None) -> None:
        super().__init__(fail)
        self.how, self.jitter, self.rank = how, jitter, rank
        self.requests = 0

    def self_test(self, prompts: list[Prompt]) -> torch.Tensor:
        """Not what is tested here: these scorers shall fail later."""
        return torch.zeros(2)

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        self.requests += 1
        time.sleep(self.jitter * int.from_bytes(os.urandom(2)) / 2**16)
        values = request.images.float().mean((1, 2, 3)) / 255
        if self.rank is None or int(os.environ.get("RANK", 0)) == self.rank:
            if self.how == "nan":
                return super().score(request)
            if self.how == "first":
                values[0] = torch.nan if self.requests == 1 else values[0]
            elif any(self.fail in p for p in request.prompts):
                raise (GuardlitError if self.how == "hopeless" else RuntimeError)("the wires are cut\nand more lines")
        return RewardResult.from_values(values)

    def counters(self) -> dict[str, float]:
        """Requests, and a latency."""
        requests, self.requests = self.requests, 0
        return {"requests": float(requests), "latency_p95": float(os.environ.get("RANK", 0))}


class Contrast(Scorer):
    """Standard deviation of the gray levels in [0, 1], scored at once."""

    def setup(self, device: torch.device) -> None:
        """Nothing to load."""

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        return RewardResult.from_values(request.images.float().std((1, 2, 3)) / 255)


class Stuck(Background):
    """Never returns from the request after `after` of them; creates the file `reported` then.

    Args:
        reported: path of that file.
        after: requests that are answered.
    """

    def __init__(self, reported: str, after: int) -> None:
        super().__init__()
        self.reported, self.after, self.asked = Path(reported), after, 0

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image, or nothing at all."""
        self.asked += 1
        if self.asked > self.after:
            self.reported.touch()
            while True:
                time.sleep(3600)
        return super().score(request)


class Marks(Scorer):
    """Two marks of an image, both logged, the first of which is its score; raises at the request `spoilt`.

    Args:
        spoilt: index of a request, from 0.
    """

    logged = ("gray", "contrast")

    def __init__(self, spoilt: int = -1) -> None:
        self.spoilt, self.asked = spoilt, 0

    def setup(self, device: torch.device) -> None:
        """Nothing to load."""

    def self_test(self, prompts: list[Prompt]) -> torch.Tensor:
        """Not counted as a request."""
        return torch.zeros(2)

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image, and two details."""
        self.asked += 1
        if self.asked == self.spoilt + 1:
            raise RuntimeError("spoilt")
        gray = request.images.float().mean((1, 2, 3)) / 255
        return self.result(gray, gray=gray, contrast=request.images.float().std((1, 2, 3)))


class Gated(Background):
    """Calls `gate` before every score."""

    def __init__(self, gate: Callable[[], object]) -> None:
        super().__init__()
        self.gate = gate

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        self.gate()
        return super().score(request)


class Stop(pl.Callback):
    """Sends SIGTERM to its own process.

    Args:
        batch: index of the micro-batch at whose end.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Before the guard looks."""
        if args[2] == self.batch:
            signal.raise_signal(signal.SIGTERM)
