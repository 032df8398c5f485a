"""Runs whose numbers go wrong: poisoned micro-batches, broken weights, rewards and gold scores that fall."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from background import Background
from brightness import Brightness

from guardlit.types import Prompt, RewardRequest, RewardResult


def _mine(rank: int | None) -> bool:
    return rank is None or int(os.environ.get("RANK", 0)) == rank


class Poison(pl.Callback):
    """Sets the second row of an update's first micro-batch to NaN.

    Args:
        updates: indices of the updates.
        rank: of the process; all by default.
        above_lr: only while the learning rate is above this.
    """

    def __init__(self, updates: list[int], rank: int | None = None, above_lr: float = 0.0) -> None:
        self.updates, self.rank, self.above_lr = updates, rank, above_lr

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
        """Before the loss is computed."""
        due = trainer.global_step in self.updates and index % trainer.accumulate_grad_batches == 0
        if due and _mine(self.rank) and trainer.optimizers[0].param_groups[0]["lr"] > self.above_lr:
            batch.latents[1] = torch.nan


class Spike(pl.Callback):
    """Multiplies an update's gradient by a thousand.

    Args:
        update: index of the update.
    """

    def __init__(self, update: int) -> None:
        self.update = update

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Before the callbacks that read the gradient."""
        if trainer.global_step == self.update:
            for parameter in module.parameters():
                if parameter.grad is not None:
                    parameter.grad *= 1000


class Break(pl.Callback):
    """Makes the trained weights NaN at the end of a round.

    Args:
        round: index of the round.
        rank: of the process; all by default.
    """

    def __init__(self, round: int, rank: int | None = None) -> None:
        self.round, self.rank = round, rank

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Before the round's checkpoint."""
        if trainer.current_epoch == self.round and _mine(self.rank):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.fill_(torch.nan)


class Snapshots(pl.Callback):
    """Keeps a copy of weights, optimizer and averages after every update, and the learning rate it was made with."""

    taken: ClassVar[list[dict[str, Any]]] = []

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """A new run."""
        type(self).taken = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """After the update."""
        if trainer.global_step > len(self.taken):
            (ema,) = (c for c in trainer.callbacks if type(c).__name__ == "TrainableEMA")
            state = trainer.optimizers[0].state_dict()["state"]
            weights = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
            moments = {f"{i}/{name}": value.clone() for i, of in state.items() for name, value in of.items()}
            averages = {f"ema/{name}": value.clone() for name, value in ema.state_dict()["averages"].items()}
            lr = trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]
            self.taken.append({"lr": lr, "tensors": weights | moments | averages})


class Modes(pl.Callback):
    """Remembers, at each start of a training, which modules are in training mode."""

    seen: ClassVar[list[list[bool]]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The first of a run, and after each rollback."""
        self.seen.append([part.training for part in module.modules()])


class ScaleRates(pl.Callback):
    """Multiplies the learning rate of a resumed run.

    Args:
        factor: of all of them.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """After the optimizer is restored."""
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= self.factor


class Scripted(Brightness):
    """Gives every image of its k-th request the k-th of some values, and the last one from then on."""

    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values, self.asked = list(values), 0

    def self_test(self, prompts: list[Prompt]) -> torch.Tensor:
        """No request."""
        return torch.zeros(2)

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        value = self.values[min(self.asked, len(self.values) - 1)]
        self.asked += 1
        return RewardResult.from_values(torch.full((len(request),), float(value)))


class Falling(Background):
    """Mean gray level, less a fall for one request.

    Args:
        at: index of the request of each process.
        fall: what the images of that request lose.
    """

    background = False

    def __init__(self, at: int = -1, fall: float = 10.0) -> None:
        super().__init__()
        self.at, self.fall = at, fall

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        result = super().score(request)
        return RewardResult.from_values(result.values - self.fall * (self.requests == self.at + 1))

    def counters(self) -> dict[str, float]:
        """None: requests are counted over the whole run."""
        return {}


class Infinite(Brightness):
    """Says of one image of each request that its score is infinite, and valid all the same."""

    def self_test(self, prompts: list[Prompt]) -> torch.Tensor:
        """Not what is tested here."""
        return torch.zeros(2)

    def score(self, request: RewardRequest) -> RewardResult:
        """One value an image."""
        values = request.images.float().mean((1, 2, 3)) / 255
        values[0] = torch.inf
        return RewardResult(values.cpu(), torch.ones(len(request), dtype=torch.bool))
