"""Scalars, images and histograms for all of a trainer's loggers.

Every function may be called on all ranks and writes on rank 0 only; loggers that take no images (CSV) are skipped.
TensorBoard's writer is recognized by its methods, not its class, since Lightning has three classes for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks.tools.lightning import Trainer
from guardlit_callbacks.tools.statistics import split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


HISTOGRAM_BINS = 40
"""TensorBoard's default is 1549 bins: ten times the work, and no clearer."""


def _tensorboard_writers(trainer: Trainer) -> list[Any]:
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [writer for writer in experiments if hasattr(writer, "add_histogram") and hasattr(writer, "add_image")]


def _image_loggers(trainer: Trainer) -> list[Any]:
    """Loggers with Lightning's method `log_image`, as W&B's."""
    return [logger for logger in trainer.loggers if hasattr(logger, "log_image")]


def takes_images(trainer: Trainer) -> bool:
    """Whether any logger takes images, so that a figure is worth drawing; on rank 0."""
    return bool(_tensorboard_writers(trainer) or _image_loggers(trainer))


def log_scalars(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Logs scalars to every logger at once; for hooks in which `pl_module.log` is not allowed."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=step)


def log_layout(trainer: Trainer, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Writes the layout of TensorBoard's tab Custom Scalars.

    Args:
        trainer: whose loggers to use.
        layout: category -> chart's title -> ["Multiline", regular expressions of keys] or
            ["Margin", [key, key of its lower end, key of its upper end]].
    """
    if trainer.is_global_zero:
        for writer in _tensorboard_writers(trainer):
            if hasattr(writer, "add_custom_scalars"):
                writer.add_custom_scalars(layout)


def log_image(trainer: Trainer, key: str, image: NDArray[np.uint8], step: int) -> None:
    """Logs an image to every logger that takes images.

    Args:
        trainer: whose loggers to use.
        key: the image's name, as in `samples`.
        image: (height, width, 3) uint8.
        step: the global step it belongs to.
    """
    if not trainer.is_global_zero:
        return
    for writer in _tensorboard_writers(trainer):
        writer.add_image(key, image, step, dataformats="HWC")
    for logger in _image_loggers(trainer):
        logger.log_image(key, [image], step=step)


def log_figure(trainer: Trainer, key: str, figure: Figure, step: int, path: Path | None = None) -> None:
    """Renders a figure once, logs it, and writes it to `path` (PNG) if given."""
    if trainer.is_global_zero:
        image = figure_to_array(figure)
        if path is not None:
            save_png(path, image)
        log_image(trainer, key, image, step)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes an image, (height, width, 3) uint8, as PNG, and makes its folder."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def figure_to_array(figure: Figure) -> NDArray[np.uint8]:
    """The rendered figure, (height, width, 3) uint8; needs no display."""
    from matplotlib.backend_bases import FigureCanvasBase
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    # a figure is full of reference cycles, and its artists hold the renderer: without this, renderers of megabytes each
    # add up until Python's garbage collector visits its oldest generation, tens of rounds later
    vars(canvas.get_renderer()).clear()
    FigureCanvasBase(figure)  # rendering the figure again takes a new renderer
    return image


def log_histograms(
    trainer: Trainer, key: str, step: NDArray[Any], values: NDArray[Any], per_step: bool = False
) -> None:
    """Logs one histogram of all values, or with `per_step` one for each denoising step, as `KEY/tTT`.

    Args:
        trainer: whose loggers to use.
        key: the histogram's name.
        step: index of each value's denoising step, (n,).
        values: (n,).
        per_step: whether each step gets its own.
    """
    parts = {f"{key}/t{t:02d}": part for t, part in split(step, values).items()} if per_step else {key: values}
    for name, part in parts.items():
        log_histogram(trainer, name, part, trainer.global_step)


def log_histogram(trainer: Trainer, key: str, values: NDArray[Any], step: int) -> None:
    """Logs a histogram of all values, any shape; nothing for an empty array."""
    if not trainer.is_global_zero or values.size == 0:
        return
    for writer in _tensorboard_writers(trainer):
        writer.add_histogram(key, values, step, bins=HISTOGRAM_BINS)
    for logger in _image_loggers(trainer):
        if type(logger).__name__ == "WandbLogger":
            wandb = import_module("wandb")  # installed, or the logger would not exist
            logger.log_metrics({key: wandb.Histogram(values)}, step=step)
