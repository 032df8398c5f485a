"""What every run has unless an argument of the Trainer says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO

from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.training.console.closing import ClosingBlock
from guardlit.training.progress_bar import RoundProgress
from guardlit.training.recovery.signals import SignalGuard
from guardlit.training.run_folder import RunFolder, next_version
from guardlit.training.strategies import checked_strategy

DEFAULTS: dict[str, Any] = {
    "accelerator": "cuda" if torch.cuda.is_available() else "cpu",  # ratios need float64, which Apple's MPS lacks
    "devices": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,  # validation at step 0 is the first point of every curve, not a rehearsal
    "check_val_every_n_epoch": 10,
    "use_distributed_sampler": False,  # the round's plan assigns samples to ranks
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "inference_mode": False,  # an average of sharded weights cannot be swapped in under it
    "default_root_dir": "runs/guardlit",
}
"""Arguments of Lightning's Trainer that a run needs otherwise than Lightning has them."""


def complete(arguments: MutableMapping[str, Any]) -> None:
    """Add to the Trainer's arguments what every run has and they do not set.

    A callback, a checkpoint plugin or a progress bar among the arguments takes the place of the default of its kind.
    The order of callbacks is the order of their hooks: those that keep a state come before `SignalGuard`, which may
    end a micro-batch, and Lightning moves checkpoints to the end.

    Args:
        arguments: of Lightning's Trainer, by name; completed in place.
    """
    for name, value in DEFAULTS.items():
        arguments.setdefault(name, value)
    arguments["strategy"] = checked_strategy(arguments.get("strategy", "auto"), str(arguments.get("precision")))
    plugins = _as_list(arguments.get("plugins"))
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(SafeCheckpointIO(collective=True))
    arguments["plugins"] = plugins
    callbacks = _as_list(arguments.get("callbacks"))
    candidates: list[tuple[bool, type[pl.Callback], Any]] = [
        (arguments.get("enable_progress_bar") is not False, ProgressBar, RoundProgress),
        (True, SignalGuard, SignalGuard),
        (True, RunFolder, RunFolder),
        (True, ClosingBlock, ClosingBlock),
        (arguments.get("enable_checkpointing") is not False, ModelCheckpoint, two_newest_rounds),
    ]
    for wanted, kind, make in candidates:
        if wanted and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(make())
    arguments["callbacks"] = callbacks


def two_newest_rounds() -> ModelCheckpoint:
    """Keep the two newest rounds' checkpoints: should one turn out to be corrupt, the one before it is still there.

    The oldest is removed once the newest is on disk.
    """
    return ModelCheckpoint(
        filename="round_{epoch:05d}",
        auto_insert_metric_name=False,
        monitor="step",
        mode="max",
        save_top_k=2,
        save_on_train_epoch_end=True,
    )


def run_loggers(root: Path) -> list[Logger]:
    """TensorBoard and CSV logs in one new folder, `root/version_K`; raises `GuardlitError` where it is not writable."""
    parent, name, version = root.parent, root.name, next_version(root)
    return [TensorBoardLogger(parent, name, version, default_hp_metric=False), CSVLogger(parent, name, version)]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, Iterable) else [value]
