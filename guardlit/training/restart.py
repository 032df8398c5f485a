"""Beginning a fit again from an earlier checkpoint of the same run, as `Rollback` asks for."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from guardlit.checkpoints.integrity import load_metadata
from guardlit.errors import NonFiniteError


def checkpoint_folder(trainer: pl.Trainer) -> Path:
    """The run's checkpoints; a broadcast, so that every process asks."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def restart_checkpoint(trainer: pl.Trainer, error: NonFiniteError) -> str:
    """The checkpoint to begin the fit again from; raises `error` where `Rollback` has named none.

    Checkpoints of the same run that are further are put aside, as `NAME.ckpt.exploded`: `--ckpt_path last` shall not
    find them.
    """
    if error.restart_from is None:
        raise error
    rank_zero_warn(str(error))
    reached, folder = _step(Path(error.restart_from)), checkpoint_folder(trainer)
    if trainer.is_global_zero:
        for path in folder.glob("*.ckpt"):
            if _step(path) > reached:
                _put_aside(path)
    trainer.strategy.barrier("put aside")
    return error.restart_from


def _step(path: Path) -> float:
    """Updates before a checkpoint, a file or a folder of shards; infinite where it cannot be read."""
    try:
        return float(load_metadata(path)["global_step"])
    except Exception:  # whatever is wrong with it: it is none to go on from
        return math.inf


def _put_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.exploded")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.exploded{number}")
    path.rename(aside)
