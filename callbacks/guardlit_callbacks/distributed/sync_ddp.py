"""DDP that reduces gradients at every backward."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from guardlit_callbacks.tools import lightning as _lightning

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy
else:
    DDPStrategy = import_module(f"{_lightning._name}.strategies").DDPStrategy


class SyncDDP(DDPStrategy):
    """DDP whose gradients are the mean over ranks after every backward, also while they accumulate.

    Lightning's own skips all reductions of an accumulation but the last, which hides each micro-batch's gradient. The
    sum is the same; the price is one reduction per micro-batch: small for a LoRA.

    Example:
        ```yaml
        trainer:
          strategy: guardlit_callbacks.SyncDDP
        ```
    """

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Blocks nothing."""
        yield
