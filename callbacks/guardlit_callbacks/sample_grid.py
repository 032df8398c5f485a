"""Validation images of fixed prompts and noise, over the course of training (Fig. 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from guardlit_callbacks.bases.validation import ValidationCallback, is_partial
from guardlit_callbacks.distributed.gather import distinct, interleave
from guardlit_callbacks.figures.pictures import Frame, captioned_grid, film_strip, fit
from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.images import check_range, read_images
from guardlit_callbacks.tools.lightning import LightningModule, Trainer
from guardlit_callbacks.tools.logging import log_image, save_png
from guardlit_callbacks.tools.outputs import read_column, read_texts
from guardlit_callbacks.tools.rounds import is_last

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sample = tuple["NDArray[np.uint8]", str, "float | None", int]
"""An image (H, W, 3), its prompt, its score, its index in the validation set (-1 where there is none)."""


class _Row(NamedTuple):
    """A row of the film strip: number of earlier grids, optimizer step, the first images and their scores."""

    grids: int
    step: int
    images: list[NDArray[np.uint8]]
    scores: list[str]


class SampleGrid(ValidationCallback[Sample]):
    """Shows the validation images with their prompts and scores, and at the end how they changed (Fig. 9).

    `validation_step` returns a dictionary with the images, (B, 3, H, W), their prompts, B texts, and their scores,
    (B,). Sample them from fixed noise, so that only training changes them.
    `trainer.validate(...)` before `fit`, or `Trainer(num_sanity_val_steps=-1)`, shows step 0 as well.
    With several ranks the images are in the order of the data set, as a DistributedSampler splits it, or in that of
    `index`.

    Logged, to every logger that takes pictures, and written to the run's folder as PNG:

    | key | file | what |
    |---|---|---|
    | `samples/grid` | `samples/step_000123.png` | each image, its score and prompt under it |
    | `samples/film_strip` | `samples/film_strip.png` | at the end: a row per validation, a column per prompt, scores |

    Example:
        ```python
        class Module(LightningModule):
            def validation_step(self, batch, batch_idx):
                images = self.sample(batch, generator=torch.Generator().manual_seed(batch_idx))
                return {"images": images, "prompts": batch, "reward": self.score(images, batch)}
        trainer = Trainer(callbacks=[SampleGrid(max_images=8)])
        ```

    Args:
        images: key of the images, (B, 3, H, W) uint8, or floats in `value_range`.
        prompts: key of the prompts.
        scores: key of the scores; None for no scores.
        index: key of each sample's index in the validation set, (B,); a sample that a distributed sampler repeats is
            then shown once. None if there are no repeats.
        every_n_validations: number of validations per grid; the last one has a grid, too.
        max_images: images in the grid, the first of the validation set.
        columns: images in a row of the grid, and in each row of the film strip.
        size: longer side of an image in the grid, in pixels.
        strip_rows: most rows of the film strip; beyond it, every other row is dropped.
        value_range: of float images, [0, 1] or [-1, 1].
        dataloader: index of the validation dataloader to read, where there are several.

    Raises:
        ValueError: a number below 1; another `value_range`.
        MisconfigurationException: the module has no `validation_step`; a key is missing in what it returned, or holds
            something else; several validation dataloaders without `dataloader`.
    """

    def __init__(
        self,
        images: str = "images",
        prompts: str = "prompts",
        scores: str | None = "reward",
        index: str | None = None,
        every_n_validations: int = 1,
        max_images: int = 16,
        columns: int = 4,
        size: int = 192,
        strip_rows: int = 10,
        value_range: tuple[float, float] = (0.0, 1.0),
        dataloader: int | None = None,
    ) -> None:
        super().__init__(dataloader)
        self.value_range = check_range(value_range, self)
        numbers = {"every_n_validations": every_n_validations, "max_images": max_images, "columns": columns}
        for name, number in {**numbers, "size": size, "strip_rows": strip_rows}.items():
            if number < 1:
                raise ValueError(f"SampleGrid: {name} must be at least 1, got {number}")
        self.images, self.prompts, self.scores, self.index = images, prompts, scores, index
        self.every_n_validations, self.max_images, self.columns = every_n_validations, max_images, columns
        self.size, self.strip_rows = size, strip_rows
        self._validations, self._stride, self._is_due = 0, 1, True
        self._strip: list[_Row] = []
        self._captions: list[str] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decides whether this validation is shown."""
        super().on_validation_start(trainer, pl_module)
        last = trainer.state.fn == "fit" and (trainer.should_stop or is_last(trainer, trainer.current_epoch + 1))
        self._is_due = last or self._validations % self.every_n_validations == 0

    def collect(self, outputs: Any) -> list[Sample]:
        """Keeps the first `max_images` images."""
        if not self._is_due or len(self._rows) >= self.max_images:
            return []
        images = read_images(outputs, self.images, self, self.value_range)
        count = len(images)
        prompts = read_texts(outputs, self.prompts, self, "prompts", count)
        scores: Sequence[float | None] = [None] * count
        if self.scores is not None:
            scores = read_column(outputs, self.scores, self, "scores", count).tolist()
        indices = [-1] * count
        if self.index is not None:
            indices = read_column(outputs, self.index, self, "index", count).tolist()
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        samples = list(zip(arrays, prompts, scores, indices, strict=True))
        return samples[: self.max_images - len(self._rows)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Plots the grid where one is due, and counts the validation."""
        super().on_validation_epoch_end(trainer, pl_module)
        if not is_partial(trainer):
            self._validations += 1

    def report(self, trainer: Trainer, pl_module: LightningModule, ranks: Sequence[Sequence[Sample]]) -> None:
        """Makes the grid and keeps the film strip's row."""
        samples = interleave(ranks)
        if self.index is not None:
            samples = [samples[position] for position in distinct([index for *_, index in samples])]
        samples = samples[: self.max_images]
        step = trainer.global_step
        images, prompts, scores, _ = zip(*samples, strict=True)
        texts = ["" if score is None else f"{self.scores} {score:.4g}" for score in scores]
        self._remember(step, images[: self.columns], texts[: self.columns])
        self._captions = list(prompts[: self.columns])
        grid = captioned_grid(images, prompts, texts, self.columns, self.size)
        self._write(trainer, "samples/grid", f"step_{step:06d}.png", grid)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the film strip."""
        if self._strip:
            frames = [Frame(f"step {row.step}", row.images, row.scores) for row in self._strip]
            strip = film_strip(frames, self._captions, min(self.size, 128))
            self._write(trainer, "samples/film_strip", "film_strip.png", strip)

    def _remember(self, step: int, images: Sequence[NDArray[np.uint8]], scores: Sequence[str]) -> None:
        """Adds a row to the strip; the first and the last stay, the others at an even stride."""
        count = math.ceil(self._validations / self.every_n_validations)
        if self._strip and self._strip[-1].grids % self._stride:
            self._strip.pop()
        thumbnails = [np.asarray(fit(image, min(max(image.shape[:2]), 128))) for image in images]
        self._strip.append(_Row(count, step, thumbnails, list(scores)))
        while len(self._strip) > self.strip_rows and self.strip_rows > 1:
            self._stride *= 2
            self._strip = [row for row in self._strip if row.grids % self._stride == 0 or row is self._strip[-1]]
        self._strip = self._strip[-self.strip_rows :]

    def _write(self, trainer: Trainer, key: str, name: str, picture: NDArray[np.uint8]) -> None:
        folder = run_dir(trainer)  # collective
        log_image(trainer, key, picture, trainer.global_step)
        if folder is not None and trainer.is_global_zero:
            save_png(folder / "samples" / name, picture)

    def state_dict(self) -> dict[str, Any]:
        """The film strip so far, as thumbnails."""
        strip = [
            (row.grids, row.step, [torch.from_numpy(image.copy()) for image in row.images], row.scores)
            for row in self._strip
        ]
        return {
            "validations": self._validations,
            "stride": self._stride,
            "captions": self._captions,
            "strip": strip,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the film strip."""
        self._validations, self._stride = state_dict["validations"], state_dict["stride"]
        self._captions = list(state_dict["captions"])
        self._strip = [
            _Row(count, step, [image.numpy() for image in images], list(scores))
            for count, step, images, scores in state_dict["strip"]
        ]
