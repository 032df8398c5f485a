"""Lightning's checkpoint IO: writes atomically, and loads intact checkpoints only."""

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

from guardlit.checkpoints.discovery import raise_corrupt, require_intact, runs_of, siblings
from guardlit.checkpoints.integrity import find_corruption
from guardlit.checkpoints.shards import read_shards
from guardlit.errors import GuardlitError
from guardlit.files import HOST, atomic_write

_DAY = 24 * 3600.0  # seconds


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, loads intact ones only and runs no code from them; errors name the file.

    Lightning's own writer uses the system's temporary folder, whose move to another disk is not atomic, and ignores a
    denied permission; its reader accepts corrupt numbers.

    Args:
        collective: all ranks load at once, as the Trainer's do: rank 0 decides which file, and one that is corrupt on
            any rank is refused on all.
    """

    def __init__(self, collective: bool = False) -> None:
        self._collective = collective

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file and rename it; raises one line for a full disk or a read-only folder."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            # the checksums, which a user may have turned off, tell later whether it is intact
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
            raise GuardlitError(f"{path} is not a Lightning checkpoint")
        return checkpoint


def write_error(path: Path, error: BaseException) -> GuardlitError:
    """The error to raise where a checkpoint could not be written."""
    kept = next((other for other in siblings(path) if find_corruption(other) is None), None)
    rest = f"the last one kept is {kept}" if kept else "no earlier one exists"
    return GuardlitError(f"checkpoint {path} could not be written ({_reason(error)}); {rest}")


def agree_on_intact(path: Path) -> Path:
    """Rank 0's checkpoint, which is intact. Collective: every rank must call it.

    Each rank looks for the newest one by itself, and may see a shared file system at another moment.

    Raises:
        GuardlitError: on every rank, where one of them finds it corrupt.
    """
    paths = gather_objects(path)
    path, rank = paths[0], dist.get_rank() if len(paths) > 1 else 0
    reasons = gather_objects(find_corruption(path, slice(rank, None, len(paths))))
    if (reason := next(filter(None, reasons), None)) is not None:
        raise_corrupt(path, reason)
    return path


def _reason(error: BaseException) -> str:
    """The system's error, also where torch's zip writer failed because of it."""
    failures = getattr(error, "failures", {})  # by rank, where several wrote shards
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
    """Remove temporary files of processes that were killed, in this folder and in those of the other runs."""
    runs = runs_of(folder / "any")
    for temporary in folder.glob(".*.tmp") if runs is None else runs.glob("version_*/checkpoints/**/.*.tmp"):
        with suppress(OSError):
            if _is_left_over(temporary):
                shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def _is_left_over(temporary: Path) -> bool:
    """Whether its writer is gone: the lock is free or, for another host's file, a day has passed since the last write.

    Another host's lock may not be visible.
    """
    unchanged = time.time() - max(p.stat().st_mtime for p in (temporary, *temporary.rglob("*"))) > _DAY
    if not temporary.is_file() or f".{HOST}." not in temporary.name:
        return unchanged
    with temporary.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # its writer locks it before the first byte
    return unchanged or temporary.stat().st_size > 0
