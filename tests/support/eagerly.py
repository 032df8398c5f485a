"""`torch.compile` in other processes, without code generation, which takes minutes."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch._dynamo.utils import counters

from guardlit.policies import SD3Policy
from guardlit.policies.network import compiling


class Eagerly(SD3Policy):
    """A policy whose compiled blocks run their graphs eagerly."""

    def load(self, shard: Any = None) -> None:
        """As `SD3Policy.load`."""
        compiling.BACKEND = "aot_eager"
        super().load(shard)


class Graphs(pl.Callback):
    """Prints the number of compiled graphs of a run."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print it on every rank."""
        print(f"graphs: {counters['stats']['unique_graphs']}", flush=True)
