"""A callback that keeps what validation drew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch


class KeepImages(pl.Callback):
    """Writes each validation batch's images and their numbers to `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write one batch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save({"images": outputs["images"].cpu(), "index": outputs["index"]}, self.folder / f"{batch_idx}.pt")
