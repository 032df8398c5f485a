"""Writes trained weights in the format that diffusers pipelines load, and images as files."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from guardlit_callbacks import TrainableEMA
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.processes.world import World

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule


def find_ema(trainer: pl.Trainer) -> TrainableEMA | None:
    """The run's average of weights, if it keeps one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, TrainableEMA)), None)


def export_weights(module: GRPOModule, ema: TrainableEMA | None, folder: Path) -> list[Path]:
    """Write `folder/raw` and, with an average, `folder/ema`. Collective: every rank must call it; rank 0 writes.

    Returns:
        The folders written.

    Raises:
        GuardlitError: a folder that cannot be written.
    """
    variants: dict[str, AbstractContextManager[None]] = {"raw": nullcontext()}
    if ema is not None:
        variants["ema"] = ema.average(module)
    for name, weights in variants.items():
        with weights:
            try:
                module.policy.export(folder / name)
            except OSError as error:
                raise GuardlitError(f"{folder / name} cannot be written: {error.strerror or error}") from error
    return [folder / name for name in variants]


def write_images(images: Tensor, prompts: list[str], per_prompt: int, folder: Path) -> list[Path]:
    """Write one PNG an image and all of them as one grid, a row a prompt.

    Args:
        images: (prompts x per_prompt, 3, height, width) uint8.
        prompts: their texts, for the file names.
        per_prompt: images of each.
        folder: made if need be.

    Returns:
        The files, the grid last.

    Raises:
        GuardlitError: a folder that cannot be written.
    """
    from torchvision.io import write_png
    from torchvision.utils import make_grid

    names = [f"{i:03d}_{_slug(prompt)}_{k}.png" for i, prompt in enumerate(prompts) for k in range(per_prompt)]
    paths = [folder / name for name in [*names, "grid.png"]]
    pictures = [*images.cpu(), make_grid(images.cpu(), nrow=per_prompt)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, picture in zip(paths, pictures, strict=True):
            write_png(picture, str(path))
    except (OSError, RuntimeError) as error:
        raise GuardlitError(f"images cannot be written to {folder}: {error}") from error
    return paths


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())[:40].strip("-")


class ExportAtEnd(pl.Callback):
    """Writes the trained weights to `export/` in the run folder when training ends.

    Attributes:
        written: the folders, once they are.
    """

    def __init__(self) -> None:
        self.written: list[Path] = []

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export."""
        if trainer.log_dir is None:  # a rehearsal
            return
        folder = Path(trainer.log_dir) / "export"
        error = None
        try:
            self.written = export_weights(pl_module, find_ema(trainer), folder)  # type: ignore[arg-type]
        except GuardlitError as mistake:
            error = mistake
        World.of(trainer).raise_on_all(error)
