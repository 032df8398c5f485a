"""Scalars, images, histograms, charts and settings for all of a trainer's loggers: the one place that knows them.

Every function may be called on all ranks and writes on rank 0 only; loggers that take no images (CSV) are skipped.
TensorBoard's writer is recognized by its methods, not its class, since Lightning has three classes for it. W&B gets the
same as TensorBoard; where TensorBoard has its tab Custom Scalars, W&B has custom charts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guardlit_callbacks.tools.lightning import Trainer
from guardlit_callbacks.tools.statistics import Array, split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


HISTOGRAM_BINS = 40
"""TensorBoard's default is 1549 bins: ten times the work, and no clearer."""

MOST_POINTS = 10_000
"""Of a W&B chart, which shows no more rows of its table."""

Layout = Mapping[str, Mapping[str, Sequence[Any]]]
"""Category -> chart's title -> ["Multiline", regular expressions of keys] or
["Margin", [key, key of its lower end, key of its upper end]]."""


def _tensorboard_writers(trainer: Trainer) -> list[Any]:
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [writer for writer in experiments if hasattr(writer, "add_histogram") and hasattr(writer, "add_image")]


def _image_loggers(trainer: Trainer) -> list[Any]:
    """Loggers with Lightning's method `log_image`, as W&B's."""
    return [logger for logger in trainer.loggers if hasattr(logger, "log_image")]


def _wandb_loggers(trainer: Trainer) -> list[Any]:
    return [logger for logger in trainer.loggers if type(logger).__name__ == "WandbLogger"]


def takes_images(trainer: Trainer) -> bool:
    """Whether any logger takes images, so that a figure is worth drawing; on rank 0."""
    return bool(_tensorboard_writers(trainer) or _image_loggers(trainer))


def log_scalars(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Logs scalars to every logger at once; for hooks in which `pl_module.log` is not allowed."""
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(metrics), step=step)


def takes_charts(trainer: Trainer) -> bool:
    """Whether any logger takes custom charts, so that their lines are worth computing; on rank 0."""
    return bool(_wandb_loggers(trainer))


def log_layout(trainer: Trainer, layout: Layout) -> None:
    """Writes the layout of TensorBoard's tab Custom Scalars."""
    if trainer.is_global_zero:
        for writer in _tensorboard_writers(trainer):
            if hasattr(writer, "add_custom_scalars"):
                writer.add_custom_scalars(layout)


def log_layout_charts(trainer: Trainer, layout: Layout, table: Mapping[str, Array], step: int) -> None:
    """Logs the charts of a layout as custom charts `charts/CATEGORY/TITLE`, over what was logged so far.

    Args:
        trainer: whose loggers to use.
        layout: as for `log_layout`.
        table: columns of the run's scalars, (n,) each with NaN for none, and `step`.
        step: the global step that they reach.
    """
    for category, charts in layout.items():
        for title, (kind, keys) in charts.items():
            names = [key for key in table if any(re.match(pattern, key) for pattern in keys)]
            lines = {name: table[name] for name in (keys if kind == "Margin" else names) if name in table}
            key = "/".join(["charts", *(re.sub(r"\W+", "_", text).strip("_") for text in (category, title))])
            log_chart(trainer, key, {name: _finite(table["step"], y) for name, y in lines.items()}, title, step)


def _finite(steps: Array, values: Array) -> dict[int, float]:
    """The values by step, the last one where a step has several."""
    at = np.isfinite(values)
    return dict(zip(steps[at].astype(int).tolist(), values[at].tolist(), strict=True))


def log_step_chart(trainer: Trainer, key: str, curves: Mapping[str, Mapping[int, float]], of: str) -> None:
    """Logs a chart over the denoising steps, of the last round that has one, next to a figure that shows more.

    Args:
        trainer: whose loggers to use.
        key: the chart's name.
        curves: step to value by the line's name.
        of: what the values are of, for the title.
    """
    log_chart(trainer, key, curves, f"{of} by denoising step", trainer.global_step, "denoising step")


def log_chart(
    trainer: Trainer, key: str, curves: Mapping[str, Mapping[int, float]], title: str, step: int, x_name: str = "step"
) -> None:
    """Logs a chart of several lines to loggers that take custom charts (W&B); others get scalars and figures.

    Args:
        trainer: whose loggers to use.
        key: the chart's name.
        curves: x to y by the line's name; a y that is not finite is left out.
        title: above the chart.
        step: the global step it belongs to.
        x_name: below the horizontal axis.
    """
    if not trainer.is_global_zero or not takes_charts(trainer):
        return
    finite = {name: [(x, y) for x, y in curve.items() if math.isfinite(y)] for name, curve in curves.items()}
    thin = 1 + sum(map(len, finite.values())) // MOST_POINTS
    shown = {name: points[::thin] for name, points in finite.items() if points}
    if shown:
        series = import_module("wandb").plot.line_series  # installed, or the logger would not exist
        xs, ys = ([[point[axis] for point in points] for points in shown.values()] for axis in (0, 1))
        for logger in _wandb_loggers(trainer):
            logger.log_metrics({key: series(xs, ys, list(shown), title, x_name)}, step=step)


def log_settings(
    trainer: Trainer,
    settings: Mapping[str, float | str],
    metrics: Sequence[str],
    first: Collection[str] = (),
    everything: Mapping[str, Any] | None = None,
) -> None:
    """Logs a run's settings: a row of TensorBoard's tab HParams, and the configuration for other loggers.

    Args:
        trainer: whose loggers to use.
        settings: those that tell runs apart, by name; TensorBoard has a column for each.
        metrics: logged keys whose last value stands in the row.
        first: names of the columns in front; TensorBoard shows the first five unless it is asked for more.
        everything: further settings for other loggers, nested by name; they get the former as `summary`.
    """
    if not trainer.is_global_zero:
        return
    for writer in _hparams_writers(trainer):
        from torch.utils.tensorboard.summary import hparams

        experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))  # type: ignore[no-untyped-call]
        described = experiment.value[0].metadata.plugin_data
        table = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData()
        table.ParseFromString(described.content)
        for column in table.experiment.hparam_infos:
            column.differs = column.name in first  # by which TensorBoard sorts
        described.content = table.SerializeToString()
        writer.file_writer.add_summary(experiment)
        writer.file_writer.add_summary(start)
    boards = _tensorboard_writers(trainer)
    for logger in trainer.loggers:
        if not any(getattr(logger, "experiment", None) is writer for writer in boards):
            logger.log_hyperparams({"summary": dict(settings), **(everything or {})})


def log_success(trainer: Trainer) -> None:
    """Marks the run in TensorBoard's tab HParams as finished; one that fails stays without a mark."""
    for writer in _hparams_writers(trainer) if trainer.is_global_zero else ():
        from torch.utils.tensorboard.summary import hparams

        writer.file_writer.add_summary(hparams({}, {})[2])  # type: ignore[no-untyped-call]


def _hparams_writers(trainer: Trainer) -> list[Any]:
    """TensorBoard's own; tensorboardX, in its absence, has no such tab to write for."""
    return [writer for writer in _tensorboard_writers(trainer) if type(writer).__module__.startswith("torch.")]


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
    for logger in _wandb_loggers(trainer):
        logger.log_metrics({key: import_module("wandb").Histogram(values)}, step=step)
