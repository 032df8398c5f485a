"""Faults of disks and of the files on them."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.inject import DIE, SAVE, before, fail, flip_bit, limit, next_descriptor, truncate
from benchmarks.faults.lab import FOLDERS, checkpoints
from benchmarks.faults.scenario import Fault


def mounted(megabytes: float) -> Callable[[Path], contextlib.AbstractContextManager[Mapping[str, object]]]:
    """A small separate disk for a run's output folder; needs root."""

    @contextmanager
    def surroundings(folder: Path) -> Iterator[Mapping[str, object]]:
        disk = folder.with_name(f"{folder.name}-disk")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1e6)}", "none", disk], check=True)
        try:
            folder.mkdir()
            (folder / "runs").symlink_to(disk / "runs")
            (disk / "runs").mkdir()
            yield {}
        finally:
            subprocess.run(["umount", "-l", disk], check=True)

    return surroundings


def _enlarge(folder: Path) -> None:
    disk = folder.with_name(f"{folder.name}-disk")
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)


def _forbid_writing(_: object, path: str, *__: object) -> None:
    """Make the folder of a checkpoint read-only: for root by a mount, as permissions do not bind it."""
    folder = str(Path(path).parent)
    if os.geteuid():
        os.chmod(folder, 0o555)
        return
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)


def _allow_writing(folder: Path) -> None:
    for place in (folder / "runs").glob("version_*/checkpoints"):
        if os.geteuid():
            place.chmod(0o755)
        else:
            subprocess.run(["umount", "-l", place], check=False, stderr=subprocess.DEVNULL)


def _last(corrupt: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: corrupt(checkpoints(folder)[-1])


def _last_shard(corrupt: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: corrupt(sorted(checkpoints(folder)[-1].glob("*.distcp"))[-1])


def _all(corrupt: Callable[[Path], None]) -> Callable[[Path], None]:
    def corrupted(folder: Path) -> None:
        for path in checkpoints(folder):
            corrupt(path)

    return corrupted


def _remove_checkpoints(folder: Path) -> None:
    for place in (folder / "runs").glob("version_*/checkpoints"):
        shutil.rmtree(place)


def _set_clock_back(folder: Path) -> None:
    """The newest checkpoint looks an hour older than the first."""
    newest, first = checkpoints(folder)[-1], checkpoints(folder)[0]
    then = first.stat().st_mtime - 3600
    os.utime(newest, (then, then))


def _block(folder: Path) -> None:
    (folder / "runs").write_text("a file where the folder of the runs belongs")


@contextmanager
def _blocked(folder: Path) -> Iterator[Mapping[str, object]]:
    folder.mkdir()
    _block(folder)
    yield {}


SAVES = 6
"""The checkpoint that a fault of the disk hits: that of the second round's first update."""
NO_ROOM = os.strerror(errno.ENOSPC)
UNWRITTEN = ("guardlit fit: error: checkpoint", "could not be written", "the last one kept is")

PASSED_OVER = ("update_7.ckpt is corrupt and not used",)

FAULTS = [
    Fault(
        "limit of a file's size when a checkpoint is written",
        prepare=before(SAVE, SAVES, limit(resource.RLIMIT_FSIZE, 50_000)),
        says=(*UNWRITTEN, "File too large"),
    ),
    Fault(
        "folder of the checkpoints becomes read-only",
        prepare=before(SAVE, SAVES, _forbid_writing),
        says=UNWRITTEN,
        fix=_allow_writing,
    ),
    Fault(
        "a file where the output folder belongs",
        surroundings=_blocked,
        says=("guardlit fit: error: output folder", "cannot be written"),
        fix=lambda folder: (folder / "runs").unlink(),
    ),
    Fault(
        "no more file descriptors",
        prepare=before(SAVE, SAVES, limit(resource.RLIMIT_NOFILE, next_descriptor)),
        says=("guardlit fit: error: ", "Too many open files", "resume with --ckpt_path last"),
    ),
    Fault(
        "no room for a line of the log",
        prepare=before("lightning.pytorch.loggers:CSVLogger.save", SAVES, fail(OSError(errno.ENOSPC, NO_ROOM))),
        says=("guardlit fit: error: ", NO_ROOM, "resume with --ckpt_path last"),
    ),
    Fault(
        "killed between writing a checkpoint and putting it in place", prepare=before("os:fsync", 6, DIE), codes=(-9,)
    ),
    Fault("last checkpoint cut in half", corrupt=_last(truncate), warns=PASSED_OVER),
    Fault("last checkpoint emptied", corrupt=_last(lambda path: os.truncate(path, 0)), warns=PASSED_OVER),
    Fault("a bit of the last checkpoint flipped", corrupt=_last(flip_bit), warns=(*PASSED_OVER, "checksum")),
    *(
        Fault(f"a shard of the last checkpoint {what}", setting=FOLDERS, corrupt=_last_shard(harm), warns=PASSED_OVER)
        for what, harm in (("is gone", Path.unlink), ("has a bit flipped", flip_bit))
    ),
    Fault(
        "all checkpoints cut in half",
        corrupt=_all(truncate),
        refused=("guardlit fit: error: ", "checkpoint"),
        fix=_remove_checkpoints,
    ),
    Fault(
        "checkpoints gone",
        corrupt=_remove_checkpoints,
        with_options=("--ckpt_path", "last"),
        refused=("guardlit fit: error: --ckpt_path last: no checkpoint under",),
    ),
    Fault("clock set back an hour before the last checkpoint", corrupt=_set_clock_back, warns=("update_7.ckpt",)),
]
"""Those that any user can run."""

if os.geteuid() == 0:
    FAULTS.append(
        Fault("disk full when a checkpoint is written", surroundings=mounted(1), says=UNWRITTEN, fix=_enlarge)
    )
