"""A restart sets later checkpoints of the run aside."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guardlit.errors import NonFiniteError
from guardlit.training.recovery.restart import restart_checkpoint


def trainer(folder: Path, rank: int = 0) -> SimpleNamespace:
    """What a restart reads of a Trainer."""
    strategy = SimpleNamespace(barrier=lambda name: None)
    return SimpleNamespace(log_dir=str(folder), is_global_zero=rank == 0, strategy=strategy)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Checkpoints of steps 2, 4 and 6, one that is corrupt, and one that was set aside before."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in (2, 4, 6):
        torch.save({"global_step": step}, folder / f"good_{step}.ckpt")
    (folder / "corrupt.ckpt").write_bytes(b"half")
    (folder / "good_6.ckpt.exploded").touch()
    return folder


def diverged(target: Path) -> NonFiniteError:
    """The error of a `Rollback`."""
    error = NonFiniteError("gradient norm is nan")
    error.restart_from = str(target)
    return error


def test_later_and_corrupt_checkpoints_are_set_aside(checkpoints: Path):
    target = checkpoints / "good_4.ckpt"
    with pytest.warns(UserWarning, match="gradient norm is nan"):
        assert restart_checkpoint(trainer(checkpoints.parent), diverged(target)) == str(target)  # type: ignore[arg-type]
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "corrupt.ckpt.exploded",
        "good_2.ckpt",
        "good_4.ckpt",
        "good_6.ckpt.exploded",
        "good_6.ckpt.exploded2",
    ]


@pytest.mark.filterwarnings("ignore:gradient norm")
def test_only_rank_0_renames(checkpoints: Path):
    before = sorted(checkpoints.iterdir())
    restart_checkpoint(trainer(checkpoints.parent, rank=1), diverged(checkpoints / "good_2.ckpt"))  # type: ignore[arg-type]
    assert sorted(checkpoints.iterdir()) == before


def test_without_a_rollback_the_error_ends_the_run(checkpoints: Path):
    with pytest.raises(NonFiniteError, match="gradient norm is nan"):
        restart_checkpoint(trainer(checkpoints.parent), NonFiniteError("gradient norm is nan"))  # type: ignore[arg-type]
