"""The last lines of a run: where it is, which weights to use, and how to look at it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from guardlit.training.console.terminal import terminal
from guardlit.training.export import ExportAtEnd


class ClosingBlock(pl.Callback):
    """Prints where a finished run is, which weights to use, and the commands that look at it; not after a rehearsal."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print; after `ExportAtEnd`, whose place among the callbacks is before this one."""
        folder = trainer.log_dir  # collective: a broadcast
        if trainer.is_global_zero and folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            print_block(list(_lines(trainer, Path(folder))))


def _lines(trainer: pl.Trainer, folder: Path) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    run, callbacks = shlex.quote(str(folder)), trainer.callbacks  # type: ignore[attr-defined]
    yield "run", run
    checkpoints = dict(_checkpoints(callbacks))
    exported = [path for callback in callbacks if isinstance(callback, ExportAtEnd) for path in callback.written]
    for path in sorted(exported, key=lambda path: path.name):  # ema before raw
        note = "averaged: use these" if path.name == "ema" else "of the last update, not averaged"
        yield "weights", f"{shlex.quote(str(path))}  ({note if len(exported) > 1 else 'of the last update'})"
    for name, checkpoint in checkpoints.items():
        yield "checkpoint", f"{shlex.quote(checkpoint)}  ({name})"
    if checkpoints and not exported and (folder / "config.yaml").exists():
        last = shlex.quote(next(iter(checkpoints.values())))
        yield "export", f"guardlit export --config {run}/config.yaml --ckpt_path {last} --out {run}/export"
    if (folder / "metrics.csv").exists():
        yield "report", f"guardlit report {run} --out {run}/report"
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        yield "curves", f"tensorboard --logdir {shlex.quote(str(folder.parent))}"


def _checkpoints(callbacks: list[pl.Callback]) -> Iterator[tuple[str, str]]:
    """What each checkpoint is, and its path: the last one first, then the best ones of a metric."""
    kept = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    for newest in kept:
        if newest.monitor in (None, "step", "epoch") and newest.best_model_path:
            yield "last", newest.best_model_path
    for best in kept:
        if best.monitor not in (None, "step", "epoch") and best.best_model_path:
            yield f"best {best.monitor}", best.best_model_path


def print_block(lines: list[tuple[str, str]]) -> None:
    """Print labels and texts as two columns, a label once; a long text is not cut, so that it can be copied."""
    width = max(len(label) for label, _ in lines) + 2
    console, before = terminal(), ""
    for label, text in lines:
        shown = f"{label if label != before else '':<{width}}"
        before = label
        if console is None:
            print(shown + text, file=sys.stderr, flush=True)
        else:
            from rich.text import Text

            console.print(Text(shown, style="bold") + Text(text), soft_wrap=True, highlight=False)
