"""Checkpoints on disk: whether one is whole, and which is the newest that is.

A checkpoint is a file that `torch.save` wrote, or a folder of shards that torch.distributed.checkpoint wrote, with
Lightning's `meta.pt` beside them and, last of all, a manifest.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from guardlit.errors import GuardlitError
from guardlit.files import atomic_write, fsync, sha256

MANIFEST = "manifest.sha256"
"""Of a folder: a line for each file, as `sha256sum` writes and checks them."""

META = "meta.pt"
"""Of a folder: all that is not spread, in Lightning's own name for it."""

_INDEX = ".metadata"  # torch's, pickled
_DIRECTORY = 0x10  # of a zip record's DOS attributes


# whole or not ---------------------------------------------------------------------------------------------------------


def find_corruption(path: Path, share: slice = slice(None)) -> str | None:
    """What is wrong with a checkpoint; None for one that is whole and can be read without running code from it.

    `torch.load` verifies no checksum: one flipped bit gives another weight and no error. The archive does hold a CRC-32
    of every record, which is verified here: 3 to 4 GB/s, less than half of the time that loading takes. Of a folder
    every file is compared with the manifest.

    Args:
        path: a file, or a folder of shards.
        share: which of a folder's files to read, where several processes divide them among them.
    """
    try:
        if not path.is_dir():
            return _archive_damage(path)
        if (found := _folder_damage(path, share)) is None:
            _check_index(path / _INDEX)
            load_metadata(path)
        return found
    except Exception as error:  # zip, zlib, struct, pickle, torch and the system: all mean that it is no good
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        return str(reason).splitlines()[0][:160]


def load_metadata(path: Path) -> dict[str, Any]:
    """A checkpoint without its numbers, tensors on the meta device: quick, whatever its size."""
    content = torch.load(path / META if path.is_dir() else path, map_location="meta", weights_only=True)
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a checkpoint")
    return content


def _archive_damage(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        if any(record.external_attr & _DIRECTORY for record in archive.infolist()):
            return "a record is marked as a folder"  # torch would take whatever is in memory for its content
        if (record := archive.testzip()) is not None:
            return f"the checksum of its record {record} is wrong"
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # finds every record, and reads no numbers
    return None


def _folder_damage(folder: Path, share: slice) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"incomplete: it has no {MANIFEST}, which is written last"
    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    if missing := sorted({META, _INDEX, *expected} - {p.name for p in folder.iterdir()}):
        return f"incomplete: {missing[0]} is missing"
    found = digests(folder, names=sorted(expected)[share])
    wrong = next((name for name in found if found[name] != expected[name]), None)
    return wrong and f"the checksum of {wrong} is wrong"


class _Index(pickle.Unpickler):
    """torch reads a folder's index with a plain `pickle.load`: it must name nothing but what an index is made of."""

    NAMES: Mapping[str, tuple[str, ...]] = {
        "torch.distributed.checkpoint.metadata": (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
            *("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
        "collections": ("OrderedDict",),
        "pathlib": ("PosixPath",),
        "pathlib._local": ("PosixPath",),
    }

    def find_class(self, module: str, name: str) -> Any:
        """What an index may name; raises `UnpicklingError` for anything else."""
        if name in self.NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its {_INDEX} asks for {module}.{name}, and code in a checkpoint is not run")


def _check_index(path: Path) -> None:
    with path.open("rb") as file:
        _Index(file).load()


# the newest -----------------------------------------------------------------------------------------------------------


def newest_intact(root: Path) -> Path:
    """The newest checkpoint of any run under `root` that is whole; a warning names every newer one that is not.

    The newest is the furthest of the latest run, whatever the clock says: runs are counted (`version_K`), and in one
    the update, the round and the place in it say how far a checkpoint is. The answer follows from the files alone, so
    that all processes find the same.

    Raises:
        GuardlitError: there is none, or none is whole.
    """
    damaged: dict[Path, str] = {}
    for path in newest_first(root):
        if (reason := find_corruption(path)) is None:
            for other, why in damaged.items():
                rank_zero_warn(f"checkpoint {other} is damaged and not used ({why}); {path} is used instead")
            return path
        damaged[path] = reason
    if damaged:
        each = "; ".join(f"{path} ({why})" for path, why in damaged.items())
        raise GuardlitError(f"--ckpt_path last: none of the checkpoints under {root} is whole: {each}")
    raise GuardlitError(f"--ckpt_path last: no checkpoint under {root}/version_*/checkpoints")


def newest_first(root: Path) -> Iterator[Path]:
    """Checkpoints of all runs under `root`, whole or not."""
    runs = [path for path in root.glob("version_*") if path.name.removeprefix("version_").isdigit()]
    for run in sorted(runs, key=lambda path: int(path.name.removeprefix("version_")), reverse=True):
        yield from _furthest_first(run / "checkpoints")


def _furthest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.ckpt"), key=lambda path: (_progress(path), path.stat().st_mtime_ns), reverse=True)


def _progress(path: Path) -> tuple[int, int, int]:
    """Updates, finished rounds and the place in the next; what cannot be read comes first, so that it is noticed."""
    try:
        content = load_metadata(path)
        data = content.get("PromptDataModule", {})
        return int(content["global_step"]), int(data.get("round", 0)), int(data.get("transitions", 0))
    except Exception:
        return sys.maxsize, 0, 0


def siblings(path: Path) -> list[Path]:
    """The other checkpoints of the same runs or, outside of a run's folder, of the same folder; newest first."""
    here = path.absolute()
    run = here.parent.parent
    of_a_run = here.parent.name == "checkpoints" and run.name.startswith("version_")
    return list(newest_first(run.parent)) if of_a_run else _furthest_first(here.parent)


def intact_before(path: Path) -> Path | None:
    """The newest whole checkpoint among those that `path` comes after."""
    others = siblings(path)
    place = others.index(path.absolute()) + 1 if path.absolute() in others else 0
    return next((other for other in others[place:] if find_corruption(other) is None), None)


def require_intact(path: Path) -> None:
    """Raise `GuardlitError` for a checkpoint that is not there or not whole, and name the one before it."""
    if not path.exists():
        raise GuardlitError(f"checkpoint {path} does not exist")
    if (reason := find_corruption(path)) is not None:
        raise_corrupt(path, reason)


def raise_corrupt(path: Path, reason: str) -> None:
    """Raise `GuardlitError` for a damaged checkpoint, and name the one before it."""
    other = intact_before(path)
    rest = f"; the one before it is whole: {other}" if other else ""
    raise GuardlitError(f"checkpoint {path} cannot be read, truncated or damaged? ({reason}){rest}")


# folders of shards ----------------------------------------------------------------------------------------------------


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 in hexadecimal of some of a folder's files, by name; several files at a time."""
    names = list(names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(sha256, (folder / name for name in names)), strict=True))


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Say what belongs to a folder, which is whole from now on; for one process, once all files are written.

    Args:
        folder: of a checkpoint.
        known: digests of files that the processes which wrote them have read already, and have on disk.
    """
    known = dict(known or {})
    rest = [p.name for p in folder.iterdir() if p.is_file() and p.name not in {MANIFEST, *known}]
    found = known | digests(folder, rest)
    for name in rest:
        fsync(folder / name)
    with atomic_write(folder / MANIFEST) as file:
        file.write("".join(f"{found[name]}  {name}\n" for name in sorted(found)).encode())


def move_into_place(temporary: Path, path: Path) -> None:
    """Give a folder that has its manifest the checkpoint's name, in place of what has it now; for one process."""
    before = path.with_name(f".{path.name}.before.tmp")  # rename(2) replaces no folder that holds anything
    _remove(before)  # of a process that was killed here
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        path.replace(before)
    temporary.replace(path)
    fsync(path.parent)
    _remove(before)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
