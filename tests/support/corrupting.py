"""Checkpoints on disk for tests: written, copied, and corrupted in one byte or bit."""

from __future__ import annotations

import multiprocessing
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.errors import GuardlitError

FORK = multiprocessing.get_context("fork")


def spoil(path: Path, change: Callable[[bytearray], object]) -> Path:
    """Change a file's bytes, and nothing else of it."""
    content, time = bytearray(path.read_bytes()), path.stat().st_mtime
    change(content)
    path.write_bytes(content)
    os.utime(path, (time, time))
    return path


def flip(path: Path, name: str = "archive/data/5") -> Path:
    """Flip one bit of a record: of a number, unless another record is named."""
    with zipfile.ZipFile(path) as archive:
        record = archive.getinfo(name)
    place = path.read_bytes().index(name.encode(), record.header_offset) + 200

    def change(content: bytearray) -> None:
        content[place] ^= 4

    return spoil(path, change)


def halve(content: bytearray) -> None:
    """Cut a file in two."""
    del content[len(content) // 2 :]


def flip_near_the_end(content: bytearray) -> None:
    """Of a manifest, in a name."""
    content[-5] ^= 4


def in_a_process(function: Callable[..., object], *args: object) -> object:
    """What a function of tests says in a forked process: its answer, or the error's text."""
    mine, others = FORK.Pipe()

    def work() -> None:
        try:
            others.send(function(*args))
        except GuardlitError as error:
            others.send(str(error))
        os._exit(0)

    process = FORK.Process(target=work)
    process.start()
    others.close()
    try:
        return mine.recv()
    except EOFError:  # killed
        return None
    finally:
        process.join(60)


def at(path: Path, step: int, position: int = 0, version: int = 0) -> Path:
    """Write a checkpoint of some update, and of some place in the round after it."""
    path = path / f"version_{version}/checkpoints/{step}_{position}.ckpt"
    data = {"round": step, "transitions": position}
    SafeCheckpointIO().save_checkpoint(
        {"state_dict": {"a": torch.ones(100)}, "global_step": step, "PromptDataModule": data}, path
    )
    return path


def shards(folder: Path) -> Path:
    """A folder as Lightning's ModelParallelStrategy writes it, by one process."""
    state = {"state_dict": {"a": torch.arange(100.0), "b": torch.ones(3)}}
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True)
    dcp.save(state, storage_writer=writer, no_dist=True)
    torch.save({"global_step": 7, "PromptDataModule": {"round": 1, "transitions": 0}}, folder / "meta.pt")
    return folder
