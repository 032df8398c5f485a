"""Restarts a fit from an earlier checkpoint of the same run, as `Rollback` asks for."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from guardlit.checkpoints.discovery import checkpoints_in
from guardlit.checkpoints.integrity import load_metadata
from guardlit.errors import NonFiniteError


def checkpoint_folder(trainer: pl.Trainer) -> Path:
    """The folder of the run's checkpoints. Collective: every rank must call it."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def restart_checkpoint(trainer: pl.Trainer, error: NonFiniteError) -> str:
    """The checkpoint to restart from after divergence; raises `error` if it names none. Collective.

    Later checkpoints of the same run are renamed to `NAME.ckpt.exploded`, so that `--ckpt_path last` does not find
    them.
    """
    if error.restart_from is None:
        raise error
    rank_zero_warn(str(error))
    restart_step, folder = _step(Path(error.restart_from)), checkpoint_folder(trainer)
    if trainer.is_global_zero:
        for path in list(checkpoints_in(folder)):
            if _step(path) > restart_step:
                _set_aside(path)
    trainer.strategy.barrier("set aside")
    return error.restart_from


def _step(path: Path) -> float:
    """Updates before a checkpoint, a file or a folder of shards; infinite where it is corrupt."""
    try:
        return float(load_metadata(path)["global_step"])
    except Exception:  # whatever is wrong with it, the run cannot resume from it
        return math.inf


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.exploded")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.exploded{number}")
    path.rename(aside)
