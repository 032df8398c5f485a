"""Beginning a fit again from an earlier checkpoint of the same run, as `Rollback` asks for."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from guardlit.checkpoints.integrity import head
from guardlit.errors import NumbersError


def folder_of(trainer: pl.Trainer) -> Path:
    """The run's checkpoints; a broadcast, so that every process asks."""
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def go_back(trainer: pl.Trainer, error: NumbersError) -> str:
    """The checkpoint to begin the fit again from; raises `error` where `Rollback` has named none.

    Checkpoints of the same run that are further are put aside, as `NAME.ckpt.exploded`: `--ckpt_path last` shall not
    find them.
    """
    if error.back_to is None:
        raise error
    rank_zero_warn(str(error))
    reached, folder = _step(Path(error.back_to)), folder_of(trainer)
    if trainer.is_global_zero:
        for path in folder.glob("*.ckpt"):
            if _step(path) > reached:
                _put_aside(path)
    trainer.strategy.barrier("put aside")
    return error.back_to


def _step(path: Path) -> float:
    """Updates before a checkpoint, a file or a folder of shards; infinite where it cannot be read."""
    try:
        return float(head(path)["global_step"])
    except Exception:  # whatever is wrong with it: it is none to go on from
        return math.inf


def _put_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.exploded")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.exploded{number}")
    path.rename(aside)
