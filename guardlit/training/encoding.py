"""Prompts encoded before any of them is drawn, and where the model is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import lightning.pytorch as pl

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule


class EncodeFirst(pl.Callback):
    """Encodes all prompts of `Trainer.predict` at once, on its device: the text encoders load at most one time.

    Args:
        texts: that will be drawn.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(dict.fromkeys(texts))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first moment at which the module is on its device."""
        cast("GRPOModule", pl_module).policy.encode_across_ranks(self._texts)
