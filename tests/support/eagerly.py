"""`torch.compile` in processes of their own, without the minutes of its compiler."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch._dynamo.utils import counters

from guardlit.policies import SD3Policy
from guardlit.policies.network import compiling


class Eagerly(SD3Policy):
    """A policy whose compiled blocks run their graphs as they are."""

    def load(self, shard: Any = None) -> None:
        """As `SD3Policy.load`."""
        compiling.BACKEND = "aot_eager"
        super().load(shard)


class Graphs(pl.Callback):
    """Prints how many graphs a run took."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Each process prints its own."""
        print(f"graphs: {counters['stats']['unique_graphs']}", flush=True)
