"""Checkpoints are written whole or not at all, and only whole ones are loaded."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from guardlit_callbacks.distributed.gather import gather_objects
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.utils.serialization import config as serialization

from guardlit.checkpoints.integrity import find_corruption, raise_corrupt, require_intact, siblings
from guardlit.checkpoints.shards import read_shards
from guardlit.errors import GuardlitError
from guardlit.files import HOST, atomic_write

_DAY = 24 * 3600.0  # seconds


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, load without executing anything, and whose errors name the file.

    Lightning's own writer goes through the system's temporary folder, whose move to another disk is not atomic, and
    lets a denied permission pass in silence; its reader takes damaged numbers for numbers.

    Args:
        collective: all ranks load at once, as the Trainer's do: rank 0 decides which file, and one that is corrupt on
            any rank is refused on all.
    """

    def __init__(self, collective: bool = False) -> None:
        self._collective = collective

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside `path`, then move into place; a full disk or a read-only folder is one line."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            # without the checksums, which somebody may have switched off, nothing tells later whether it is whole
            with locked_write(path) as file, serialization.patch("save.compute_crc32", True):  # type: ignore[attr-defined]
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
            raise write_error(path, error) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values only, whatever `weights_only` says."""
        path = Path(path)
        if self._collective:
            path = agree_on_intact(path)
        else:
            require_intact(path)
        if path.is_dir():
            checkpoint: Any = read_shards(path, device="meta" if map_location == "meta" else "cpu")
        else:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise GuardlitError(f"{path} is no Lightning checkpoint")
        return checkpoint


def write_error(path: Path, error: BaseException) -> GuardlitError:
    """What to raise where a checkpoint could not be written."""
    kept = next((other for other in siblings(path) if find_corruption(other) is None), None)
    rest = f"the last one kept is {kept}" if kept else "no earlier one exists"
    return GuardlitError(f"checkpoint {path} could not be written ({_reason(error)}); {rest}")


def agree_on_intact(path: Path) -> Path:
    """The first process's checkpoint, which is whole; to be called by all processes.

    Processes look for the newest one each for itself, and may see a shared file system at different moments.

    Raises:
        GuardlitError: on all processes, where one of them finds damage.
    """
    paths = gather_objects(path)
    path, rank = paths[0], dist.get_rank() if len(paths) > 1 else 0
    reasons = gather_objects(find_corruption(path, slice(rank, None, len(paths))))
    if (reason := next(filter(None, reasons), None)) is not None:
        raise_corrupt(path, reason)
    return path


def _reason(error: BaseException) -> str:
    """What the system said, where torch's zip writer came to grief over it."""
    failures = getattr(error, "failures", {})  # of each process, where several wrote shards
    cause: BaseException | None = next((failure for failure, _ in failures.values()), error)
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return getattr(cause, "strerror", None) or str(error).splitlines()[0]


@contextmanager
def locked_write(path: Path) -> Iterator[IO[bytes]]:
    """`atomic_write`, with a lock on the temporary file that tells `remove_leftovers` that it is being written."""
    with atomic_write(path) as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are gone left half-written, here and in the other runs beside this one."""
    run = folder.absolute().parent
    beside = run.name.startswith("version_") and folder.name == "checkpoints"
    for temporary in run.parent.glob("version_*/checkpoints/.*.tmp") if beside else folder.glob(".*.tmp"):
        with suppress(OSError):
            if _is_left_over(temporary):
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def _is_left_over(temporary: Path) -> bool:
    """Nobody writes it any more: its lock is free or, where another host's lock may not be seen, it rests for a day."""
    resting = time.time() - max(p.stat().st_mtime for p in (temporary, *temporary.rglob("*"))) > _DAY
    if not temporary.is_file() or f".{HOST}." not in temporary.name:
        return resting
    with temporary.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # its writer locks it before the first byte
    return resting or temporary.stat().st_size > 0
