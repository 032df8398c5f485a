"""Writes trained weights in the formats of other programs, with model cards, and images as files."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import lightning.pytorch as pl
from guardlit_callbacks import TrainableEMA
from guardlit_callbacks.distributed import gather_objects, is_first
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.exports.facts import ExportFormat
from guardlit.processes.world import World
from guardlit.training.model_card.card import Origin, write_card
from guardlit.training.model_card.run_facts import read_run_facts
from guardlit.training.model_card.sampling import write_sampling

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule


def find_ema(trainer: pl.Trainer) -> TrainableEMA | None:
    """The run's average of weights, if it keeps one."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, TrainableEMA)), None)


@dataclass(frozen=True)
class Export:
    """What to write, and what its model cards say of where it comes from.

    Attributes:
        origin: of the weights.
        run: the run's folder; None if it is unknown.
        to: who reads the files.
        merged: complete weights with the adapter added, in place of the adapter.
    """

    origin: Origin
    run: Path | None = None
    to: ExportFormat = "diffusers"
    merged: bool = False


def check_merged(merged: bool, base_steps: int) -> None:
    """Raise `GuardlitError` for merged weights of a run whose last steps are the base model's."""
    if merged and base_steps:
        raise GuardlitError(
            f"--merged true: merged weights cannot be switched off for the last {base_steps} steps: leave --merged "
            "out, or set --model.evaluation.base_steps to 0"
        )


def export_weights(module: GRPOModule, ema: TrainableEMA | None, folder: Path, export: Export) -> list[Path]:
    """Write `folder/raw` and, with an average, `folder/ema`, each with a model card.

    Collective: every rank must call it; rank 0 writes.

    Returns:
        The folders written.

    Raises:
        GuardlitError: a folder that cannot be written, or a format that the policy does not write.
    """
    variants: dict[str, AbstractContextManager[None]] = {"raw": nullcontext()}
    if ema is not None:
        variants["ema"] = ema.average(module)
    for name, weights in variants.items():
        with weights:
            _raise_on_all(_tried(module, folder / name, export))  # before the next average, which is a collective
    return [folder / name for name in variants]


def _tried(module: GRPOModule, folder: Path, export: Export) -> GuardlitError | None:
    """Export one set of weights; says what went wrong."""
    try:
        _export(module, folder, export)
    except GuardlitError as error:
        return error
    except (OSError, ValueError) as error:
        return GuardlitError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}")
    return None


def _raise_on_all(error: GuardlitError | None) -> None:
    """Raise the error of the first rank that has one on every rank. Collective."""
    for found in gather_objects(error):
        if found is not None:
            raise found


def _export(module: GRPOModule, folder: Path, export: Export) -> None:
    """One set of weights, its card, and how it is sampled."""
    draws = module.evaluation
    check_merged(export.merged, draws.base_steps)
    module.policy.export(folder, export.to, export.merged)
    sampling = (draws.num_inference_steps, draws.guidance_scale, draws.base_steps)
    facts = module.policy.export_facts(export.to, export.merged, *sampling)
    if is_first():
        write_sampling(folder, draws)
    if facts is not None and is_first():
        run = read_run_facts(export.run, export.origin.updates)
        write_card(folder, facts, run, export.origin, folder.name)


def write_images(images: Tensor, prompts: list[str], per_prompt: int, folder: Path) -> list[Path]:
    """Write one PNG an image, `metadata.jsonl` with their prompts, and all of them as one grid, a row a prompt.

    So the folder is a data set of image and prompt: Hugging Face's `imagefolder`, and `model.data_loss.images`.

    Args:
        images: (prompts x per_prompt, 3, height, width) uint8.
        prompts: their texts, for the file names.
        per_prompt: images of each.
        folder: made if need be.

    Returns:
        The images, then the grid.

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
        rows = [{"file_name": name, "text": prompts[i // per_prompt]} for i, name in enumerate(names)]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
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
        run, module = Path(trainer.log_dir), cast("GRPOModule", pl_module)
        export = Export(Origin(trainer.global_step, module.experience.round.number), run)
        error = None
        try:
            self.written = export_weights(module, find_ema(trainer), run / "export", export)
        except GuardlitError as mistake:
            error = mistake
        World.of(trainer).raise_on_all(error)
