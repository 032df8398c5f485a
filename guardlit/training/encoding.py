"""Prompts of `Trainer.predict`, encoded before the first of them is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import lightning.pytorch as pl

from guardlit.policies.base import FlowPolicy


class EncodeFirst(pl.Callback):
    """Encodes all prompts of `Trainer.predict` at once, on the module's device: the text encoders load at most once.

    Args:
        texts: prompts to encode; duplicates count once.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(dict.fromkeys(texts))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first hook with the module on its device."""
        cast("FlowPolicy", pl_module.policy).encode_across_ranks(self._texts)
