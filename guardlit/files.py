"""Writes files atomically, flushes them to disk, and computes their SHA-256. Imports nothing of guardlit."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

HOST = socket.gethostname()


@contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file in `path`'s folder that replaces `path` on success and is removed on an error.

    A reader sees the old content or the new one, never a part. The temporary name holds host and process, so that
    ranks may write the same path at once.

    Args:
        path: of the file; its folder exists.
        sync: flush file and folder to disk, so that the content also survives a crash of the machine. False for what
            can be computed again.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` and the Hugging Face hub show it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
