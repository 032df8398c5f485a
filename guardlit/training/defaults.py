"""What every run has unless an argument of the Trainer says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.plugins.io import CheckpointIO

from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.training.console.closing import ClosingBlock
from guardlit.training.limits.strategies import checked_strategy
from guardlit.training.logs.dashboard import Dashboard
from guardlit.training.logs.in_folder import by_name
from guardlit.training.logs.settings import LoggedSettings
from guardlit.training.progress_bar import RoundProgress
from guardlit.training.recovery.signals import SignalGuard
from guardlit.training.round_checkpoint import RoundCheckpoint
from guardlit.training.run_folder import RunFolder

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

    A callback, a checkpoint plugin or a progress bar among the arguments takes the place of the default of its kind. A
    `ModelCheckpoint` that keeps other checkpoints than the newest rounds' stands next to `RoundCheckpoint`.
    The order of callbacks is the order of their hooks: those that keep a state come before `SignalGuard`, which may
    end a micro-batch, and Lightning moves checkpoints to the end.

    Args:
        arguments: of Lightning's Trainer, by name; completed in place.
    """
    for name, value in DEFAULTS.items():
        arguments.setdefault(name, value)
    arguments["logger"] = by_name(arguments.get("logger"))
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
        (True, LoggedSettings, LoggedSettings),
        (True, Dashboard, Dashboard),
        (True, ClosingBlock, ClosingBlock),
    ]
    for wanted, kind, make in candidates:
        if wanted and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(make())
    if arguments.get("enable_checkpointing") is not False:
        callbacks += _every_round(callbacks)
    arguments["callbacks"] = callbacks


def _every_round(callbacks: Iterable[pl.Callback]) -> list[pl.Callback]:
    """The checkpoints of the newest rounds, unless a callback keeps them; one that keeps others is no replacement."""
    mine = RoundCheckpoint()
    given = (callback for callback in callbacks if isinstance(callback, ModelCheckpoint))
    return [] if any(callback.state_key == mine.state_key for callback in given) else [mine]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
