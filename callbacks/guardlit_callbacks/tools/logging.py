"""Pictures and histograms for whatever loggers the trainer has.

Every function may be called on all ranks and writes on rank 0 only; loggers that take no pictures (CSV) are skipped.
TensorBoard's writer is known by its methods, not its class, since Lightning has three classes for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks.tools.lightning import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


HISTOGRAM_BINS = 40
"""TensorBoard's own are 1549, none of them wider than a tenth of its value: ten times the work, and no better look."""


def run_dir(trainer: Trainer) -> Path | None:
    """The folder of this run. A collective: call it on all ranks.

    A logger that has no folder for each run, as W&B's, gives `<save_dir>/<name>/<version>`, where Lightning's
    `ModelCheckpoint` writes as well. None where Lightning names no folder.
    """
    logger = trainer.logger
    if logger is None or getattr(logger, "log_dir", None):
        return Path(trainer.log_dir) if trainer.log_dir else None
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return Path(trainer.strategy.broadcast(folder))


def is_rehearsal(trainer: Trainer) -> bool:
    """Whether this is a sanity check on some batches only; one on all (`num_sanity_val_steps=-1`) counts."""
    return bool(trainer.sanity_checking) and trainer.num_sanity_val_steps != float("inf")


def _tensorboard_writers(trainer: Trainer) -> list[Any]:
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [writer for writer in experiments if hasattr(writer, "add_histogram") and hasattr(writer, "add_image")]


def _picture_loggers(trainer: Trainer) -> list[Any]:
    """Loggers with Lightning's own picture method, as W&B's."""
    return [logger for logger in trainer.loggers if hasattr(logger, "log_image")]


def log_scalars(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Hands scalars to every logger at once; for hooks in which `pl_module.log` is not allowed."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=step)


def log_image(trainer: Trainer, key: str, image: NDArray[np.uint8], step: int) -> None:
    """Hands a picture to the loggers.

    Args:
        trainer: whose loggers to use.
        key: the name of the picture, as in `samples`.
        image: (height, width, 3) uint8.
        step: the global step it belongs to.
    """
    if not trainer.is_global_zero:
        return
    for writer in _tensorboard_writers(trainer):
        writer.add_image(key, image, step, dataformats="HWC")
    for logger in _picture_loggers(trainer):
        logger.log_image(key, [image], step=step)


def log_figure(trainer: Trainer, key: str, figure: Figure, step: int, path: Path | None = None) -> None:
    """Draws a figure once, hands it to the loggers, and writes it to `path` (PNG) as well if given."""
    if trainer.is_global_zero:
        image = figure_to_array(figure)
        if path is not None:
            save_png(path, image)
        log_image(trainer, key, image, step)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes a picture, (height, width, 3) uint8, and makes its folder."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def figure_to_array(figure: Figure) -> NDArray[np.uint8]:
    """The figure as drawn, (height, width, 3) uint8; needs no display."""
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    # a figure is full of circles, and whatever was drawn in it holds the renderer: without this its pixels, megabytes
    # each, add up until Python's collector comes round to its oldest objects, tens of rounds later
    vars(canvas.get_renderer()).clear()
    FigureCanvasBase(figure)  # whoever draws it again gets a renderer of his own
    return image


def log_histogram(trainer: Trainer, key: str, values: NDArray[Any], step: int) -> None:
    """Hands all values of a histogram, any shape, to the loggers; nothing is written for an empty array."""
    if not trainer.is_global_zero or values.size == 0:
        return
    for writer in _tensorboard_writers(trainer):
        writer.add_histogram(key, values, step, bins=HISTOGRAM_BINS)
    for logger in _picture_loggers(trainer):
        if type(logger).__name__ == "WandbLogger":
            wandb = import_module("wandb")  # installed, or the logger would not exist
            logger.log_metrics({key: wandb.Histogram(values)}, step=step)
