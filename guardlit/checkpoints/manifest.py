"""Checkpoint folders: their manifest, the SHA-256 of every file, and their atomic move into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guardlit.files import atomic_write, fsync, sha256

MANIFEST = "manifest.sha256"
"""Of a folder: one line for each file, as `sha256sum` writes and checks them; written last."""

META = "meta.pt"
"""Of a folder: everything that is not sharded, in the file that Lightning names so."""


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 in hexadecimal of some of a folder's files, by name; several files at a time."""
    names = list(names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(names, pool.map(sha256, (folder / name for name in names)), strict=True))


def read_manifest(folder: Path) -> dict[str, str]:
    """The digests that a folder's manifest lists, by file name."""
    lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest, which marks the folder as complete; one rank calls it once all files are written.

    Args:
        folder: of a checkpoint.
        known: digests of files that other ranks wrote and flushed to disk.
    """
    known = dict(known or {})
    rest = [p.name for p in folder.iterdir() if p.is_file() and p.name not in {MANIFEST, *known}]
    found = known | digests(folder, rest)
    for name in rest:
        fsync(folder / name)
    with atomic_write(folder / MANIFEST) as file:
        file.write("".join(f"{found[name]}  {name}\n" for name in sorted(found)).encode())


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a complete folder to the checkpoint's name, replacing what has it now; one rank calls it."""
    before = path.with_name(f".{path.name}.before.tmp")  # rename(2) replaces no folder that is not empty
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
